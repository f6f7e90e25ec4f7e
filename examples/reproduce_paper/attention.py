"""Figure 3: the attention that prompts and other tokens receive, drawn as ``m2pt attn-map`` draws it."""

from __future__ import annotations

from contextlib import chdir
from pathlib import Path

from cells import Experiment
from running import Setup

from m2pt_cli.analysis.attention_run import run_attention
from m2pt_cli.data.sample import image_reference
from m2pt_cli.settings import AttnMapSettings

FIGURE, VALUES = "figure3-attention.png", "figure3-attention.json"
IMAGE = "examples/images/shapes.png"
QUESTION = "What color is the circle? Answer with one word."


def draw_attention_of_the_whole(setup: Setup, found: Experiment) -> bool:
    """Figure and numbers of M²PT's first seed, about one example image; False while that cell is not finished."""
    cell = f"{found.whole.name}-seed0"
    if not (setup.folder / "cells" / f"{cell}.json").exists():
        return False
    settings = AttnMapSettings(
        base=setup.base,
        adapter=(f"runs/{cell}",),
        image=IMAGE,
        question=QUESTION,
        part=("language", "vision"),
        output=Path(FIGURE),
        values=Path(VALUES),
        drop_sinks=True,
        device=setup.device,
        threads=setup.threads,
        overwrite=True,
    )
    # Figure and numbers name the adapter and the image as they are given: without folders of this machine.
    image = image_reference(IMAGE, folder=Path(__file__).parents[2])
    with chdir(setup.folder):
        run_attention(settings, image=image)
    return True
