"""The figure of ``m2pt attn-map``: what is drawn, colour scales, and file formats."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from fixtures.made_maps import made_maps, made_run
from PIL import Image

from m2pt_cli.analysis.attention_figure import attention_figure, draw_attention
from m2pt_cli.analysis.attention_maps import AttentionMaps


def panels(maps: AttentionMaps, **options: Any) -> dict[str, list[Any]]:
    """The axes with a title, by its first line."""
    found: dict[str, list[Any]] = {}
    for axes in attention_figure(maps, **options).get_axes():
        if axes.get_title():
            found.setdefault(axes.get_title().splitlines()[0], []).append(axes)
    return found


def named(found: dict[str, list[Any]], start: str) -> list[Any]:
    return [axes for title, several in found.items() for axes in several if title.startswith(start)]


def test_every_part_has_its_panels() -> None:
    found = list(panels(made_maps(made_run(official=True))))
    for start in (
        "image",
        "mean of layers",
        "Prompts that each answer token attended (mean of layers)",
        "Language model: share of attention by group",
        "Vision tower: share of attention by group",
        "Language model: attention per token of a group",
        "Language model, layer 2 of 0 to 3: attention received by each token",
        "Vision tower, layer 3 of 0 to 3: attention received by each token",
        "Visual prompts that the patches attended",
        "Projected visual prompts in the language model",
    ):
        assert [title for title in found if title.startswith(start)], start


def test_parts_are_drawn_as_asked() -> None:
    assert sorted(panels(made_maps(), parts=("overlay",))) == ["image", "mean of layers"]
    vision = panels(made_maps(), parts=("vision",))
    assert vision
    assert all(title.startswith("Vision tower") for title in vision)


def test_an_overlay_for_every_layer_head_and_token() -> None:
    run = made_run(heads=(1, 3))
    found = panels(made_maps(run, layers=(0, 2), heads=(1, 3), tokens=(-1,)), parts=("overlay",))
    wanted = [f"layer {layer}, head {head}, token -1" for layer in (0, 2) for head in (1, 3)]
    assert list(found) == ["image", *wanted]
    grey, heat = found["layer 2, head 3, token -1"][0].get_images()
    assert grey.get_extent() == list(heat.get_extent())
    assert run.language is not None
    np.testing.assert_allclose(heat.get_array(), 100 * run.language.overlay([2], 1, [-1]), rtol=1e-5)


def test_the_curve_draws_what_was_received() -> None:
    run = made_run()
    axes = named(panels(made_maps(run, layers=(1,))), "Language model, layer 1")[0]
    assert run.language is not None
    np.testing.assert_allclose(axes.lines[0].get_ydata(), 100 * run.language.received[1], rtol=1e-6)
    np.testing.assert_allclose(axes.lines[1].get_ydata(), 100 * run.language.uniform, rtol=1e-6)
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert labels == list(run.language.tokens.labels)


def test_dropped_sinks_leave_the_scale_and_the_figure_says_so() -> None:
    """The first token takes most of the attention of the made-up maps."""
    maps = made_maps()
    for start in ("Language model: share", "Language model, layer"):
        whole = named(panels(maps, parts=("language",)), start)[0]
        without = named(panels(maps, parts=("language",), drop_sinks=True), start)[0]
        assert whole.get_ylim()[1] > 50 > without.get_ylim()[1]
        assert "left out" not in whole.get_title()
        assert "first token left out of the scale" in without.get_title()
        drawn = [line.get_label() for line in without.lines]
        assert "first token" not in drawn


def test_runs_side_by_side_share_their_scales() -> None:
    maps = made_maps(made_run(seed=1), made_run(None, textual=0, visual=0, seed=2))
    found = panels(maps)
    for start in ("Language model: share", "Vision tower: share", "Language model, layer", "Vision tower, layer"):
        left, right = named(found, start)
        assert left.get_ylim() == right.get_ylim()
    left, right = found["mean of layers"]
    assert left.get_images()[1].get_clim() == right.get_images()[1].get_clim()
    said = [text.get_text() for axes in attention_figure(maps).get_axes() for text in axes.texts]
    assert said == ["no prompts in the language model", "no visual prompts"]


@pytest.mark.parametrize("suffix", [".svg", ".pdf", ".PNG"])
def test_files_by_suffix(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"map{suffix}"
    draw_attention(made_maps(question="costs $5 or $6_{x}?"), file, parts=("overlay", "vision"))
    start = file.read_bytes()[:4]
    if suffix == ".svg":
        assert ElementTree.parse(file).getroot().tag.endswith("svg")
    else:
        assert start == (b"%PDF" if suffix == ".pdf" else b"\x89PNG")
    if suffix == ".PNG":
        assert Image.open(file).width > 1200
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_the_same_maps_give_the_same_bytes(tmp_path: Path) -> None:
    for suffix in (".png", ".pdf"):
        files = [tmp_path / f"{name}{suffix}" for name in "ab"]
        for file in files:
            draw_attention(made_maps(), file, parts=("prompts",))
        assert files[0].read_bytes() == files[1].read_bytes()


def test_control_characters_are_not_drawn(tmp_path: Path) -> None:
    maps = made_maps(made_run("runs/\x07a"), question="what \x1b[31mis\x00 it?")
    title = attention_figure(maps).get_suptitle()
    assert title.startswith("“what [31mis it?”") and title.isprintable() is ("\n" not in title)
    draw_attention(maps, tmp_path / "map.svg")
    ElementTree.parse(tmp_path / "map.svg")


def test_no_pyplot(tmp_path: Path) -> None:
    before = "matplotlib.pyplot" in sys.modules
    draw_attention(made_maps(), tmp_path / "map.png", parts=("prompts",))
    assert ("matplotlib.pyplot" in sys.modules) == before
