"""Figure 3: the attention on prompts and other tokens, drawn as ``m2pt attn-map`` does."""

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
    """Draw M²PT's first seed on one example image; return False if that cell is not finished."""
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
    # The files show the adapter and image names as given here, so pass names without folders of this machine.
    image = image_reference(IMAGE, folder=Path(__file__).parents[2])
    with chdir(setup.folder):
        run_attention(settings, image=image)
    return True
