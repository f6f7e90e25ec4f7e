"""Figures: what is drawn, where, on which scales, and the files they are written to."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from fixtures.drawn_texts import drawn_texts
from fixtures.made_maps import GRID, LAYERS, made_maps, made_run
from matplotlib.collections import QuadMesh
from PIL import Image

from m2pt_cli.analysis.attention_figure import attention_figure, draw_attention
from m2pt_cli.analysis.attention_layout import PAGE, Block, display_names, rows_of
from m2pt_cli.analysis.attention_maps import AttentionMaps

TWO = (made_run(textual=10, visual=6, answer=3), made_run(None, textual=0, visual=0, answer=9, seed=2))
OFFICIAL = made_run("runs/o", official=True, textual=12, visual=20, answer=4)


def titles(figure: Any) -> list[str]:
    """The titles of the blocks, without their letters."""
    return [text.get_text() for text in figure.texts if not text.get_text().startswith("(") and text.get_va() == "top"]


def meshes(figure: Any) -> list[tuple[Any, Any]]:
    """Axes and mesh of every map that is no colour bar."""
    found = [(axes, one) for axes in figure.axes for one in axes.collections if isinstance(one, QuadMesh)]
    return [(axes, one) for axes, one in found if axes.get_position().width * figure.get_figwidth() > 0.2]


def curves(figure: Any, ylabel: str) -> list[Any]:
    """Panels of lines by their label; a label on the left stands for the panels beside it."""
    return [axes for axes in figure.axes if axes.get_ylabel() == ylabel and axes.lines]


def test_every_part_has_its_blocks() -> None:
    found = titles(attention_figure(made_maps(OFFICIAL)))
    assert found[0].startswith("“what is it?”")
    assert sorted(found[1:]) == sorted(
        [
            "Attention of the answer on the image, mean of layers",
            "Answer tokens on prompts, mean of layers",
            "Share of attention by group, language model",
            "Share of attention by group, vision tower",
            "Attention per token / uniform, language model",
            "Attention per token / uniform, vision tower",
            "Attention on each token, language model, layer 2 of 0 to 3",
            "Attention on each token, vision tower, layer 3 of 0 to 3",
            "Patches on visual prompts, vision tower",
            "Projected visual prompts, language model",
        ]
    )


def test_parts_are_drawn_as_asked() -> None:
    assert len(titles(attention_figure(made_maps(), parts=("overlay",)))) == 2
    vision = titles(attention_figure(made_maps(), parts=("vision",)))[1:]
    assert len(vision) == 3
    assert all("vision tower" in title for title in vision)


SHOWN: list[tuple[str, AttentionMaps, dict[str, Any]]] = [
    ("one", made_maps(), {}),
    ("two", made_maps(*TWO), {"drop_sinks": True}),
    ("official", made_maps(OFFICIAL, *TWO), {}),
    ("overlays", made_maps(*TWO, layers=(0, 2), tokens=(1,)), {"parts": ("overlay",)}),
    ("many overlays", made_maps(made_run(heads=(0, 1, 2)), layers=(0, 1, 2), heads=(0, 1, 2)), {"parts": ("overlay",)}),
    ("six", made_maps(*[made_run(f"runs/{name}", seed=n) for n, name in enumerate("abcdef")], layers=(0, 2)), {}),
    ("long names", made_maps(made_run("runs/" + "very-long-name-" * 8), TWO[1], question="why? " * 60), {}),
    ("vision", made_maps(*TWO), {"parts": ("vision",)}),
]


@pytest.mark.parametrize(("name", "maps", "options"), SHOWN, ids=[name for name, _, _ in SHOWN])
def test_no_text_overlaps_or_leaves_the_figure(
    name: str, maps: AttentionMaps, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = attention_figure(maps, **options)
    assert figure.get_figwidth() <= PAGE + 1e-6
    boxes = drawn_texts(figure, monkeypatch)
    assert len(boxes) > 10
    whole = figure.bbox.padded(1)
    for text, box in boxes:
        assert whole.contains(box.x0, box.y0) and whole.contains(box.x1, box.y1), f"{text!r} leaves the figure"
    for (one, first), (other, second) in itertools.combinations(boxes, 2):
        assert not first.overlaps(second), f"{one!r} lies on {other!r}"


def test_the_image_is_drawn_once_and_no_panel_is_empty() -> None:
    figure = attention_figure(made_maps(*TWO))
    coloured = [axes for axes in figure.axes for image in axes.images if image.get_array().ndim == 3]
    assert len(coloured) == 1
    assert all(axes.has_data() for axes in figure.axes)
    # The bare base has no prompts: its panels of prompts are left out, not drawn empty.
    maps_of_prompts = [axes for axes, _ in meshes(figure) if "prompt" in axes.get_xlabel()]
    assert [axes.get_title(loc="left") for axes in maps_of_prompts] == ["a", "a"]


def test_heights_of_panels_are_fixed() -> None:
    """Panels are as high for six runs as for one, and one run with all parts fits on a page."""

    def heights(figure: Any, label: str) -> set[float]:
        return {round(axes.get_position().height * figure.get_figheight(), 6) for axes in curves(figure, label)}

    figures = [
        attention_figure(made_maps(*runs)) for runs in ((made_run(),), TWO, [made_run(f"r/{n}") for n in range(6)])
    ]
    for label in ("share of attention (%)", "attention (%)"):
        found = [heights(figure, label) for figure in figures]
        assert found[0] == found[1] == found[2]
        assert len(found[0]) == 1
    assert figures[0].get_figheight() < 9.5


def test_an_overlay_for_every_layer_head_and_token() -> None:
    run = made_run(heads=(1, 3))
    figure = attention_figure(made_maps(run, layers=(0, 2), heads=(1, 3), tokens=(-1,)), parts=("overlay",))
    said = [axes.get_title(loc="left").splitlines() for axes, _ in meshes(figure)]
    assert said == [[f"layer {layer}, head {head}", "token -1: “w6”"] for layer in (0, 2) for head in (1, 3)]
    axes, heat = meshes(figure)[3]
    assert run.language is not None
    np.testing.assert_allclose(heat.get_array(), 100 * run.language.overlay([2], 1, [-1]), rtol=1e-5)
    # A square for each patch, over the whole picture, and nothing smoothed in between.
    corners = heat.get_coordinates()
    assert corners.shape == (GRID + 1, GRID + 1, 2)
    assert corners[0, 0].tolist() == [-0.5, -0.5] and corners[-1, -1].tolist() == [11.5, 11.5]
    assert axes.images[0].get_extent() == [-0.5, 11.5, 11.5, -0.5]


def test_runs_of_two_choices_keep_their_own_overlays() -> None:
    figure = attention_figure(made_maps(*TWO, layers=(0, 2)), parts=("overlay",))
    found = [heat.get_array() for _, heat in meshes(figure)]
    for number, (run, layer) in enumerate(itertools.product(TWO, (0, 2))):
        assert run.language is not None
        np.testing.assert_allclose(found[number], 100 * run.language.overlay([layer], 0, []), rtol=1e-5)


def test_the_curve_draws_what_was_received() -> None:
    run = made_run()
    figure = attention_figure(made_maps(run, layers=(1,)), parts=("language",))
    [axes] = curves(figure, "attention (%)")
    assert run.language is not None
    np.testing.assert_allclose(axes.lines[0].get_ydata(), 100 * run.language.received[1], rtol=1e-6)
    np.testing.assert_allclose(axes.lines[1].get_ydata(), 100 * run.language.uniform, rtol=1e-6)
    assert [text.get_text() for text in axes.get_xticklabels()] == list(run.language.tokens.labels)


def test_shares_and_ratios_draw_the_numbers() -> None:
    run = made_run()
    figure = attention_figure(made_maps(run), parts=("language",))
    [axes] = curves(figure, "share of attention (%)")
    assert run.language is not None
    shares, uniform = run.language.shares(), run.language.uniform_shares()
    lines = {line.get_label(): line.get_ydata() for line in axes.lines if not line.get_label().startswith("_")}
    assert set(lines) == set(shares)
    for group, share in shares.items():
        np.testing.assert_allclose(lines[group], 100 * share, rtol=1e-6)
    [(panel, mesh)] = meshes(figure)
    rows = [text.get_text().replace(" ", "_") for text in panel.get_yticklabels()]
    expected = [np.log2(shares[group] / uniform[group]) for group in rows]
    np.testing.assert_allclose(mesh.get_array(), expected, rtol=1e-4)
    assert mesh.get_array().shape == (len(shares), LAYERS)


def test_dropped_sinks_leave_the_scale_and_the_figure_says_so() -> None:
    """The first token takes most of the attention of the made-up maps."""
    maps = made_maps()
    whole, without = (attention_figure(maps, parts=("language",), drop_sinks=dropped) for dropped in (False, True))
    for label in ("share of attention (%)", "attention (%)"):
        assert curves(whole, label)[0].get_ylim()[1] > 50 > curves(without, label)[0].get_ylim()[1]

    def said(figure: Any) -> str:
        return " ".join(axes.get_title(loc=side) for axes in figure.axes for side in ("left", "right"))

    assert "first token" not in said(whole)
    assert "first token, not drawn: 7" in said(without) and "first token, not in the scale: 7" in said(without)
    drawn = [line.get_label() for line in curves(without, "share of attention (%)")[0].lines]
    assert "first_token" not in drawn


def test_runs_side_by_side_share_scales_and_legend() -> None:
    figure = attention_figure(made_maps(*TWO))
    for label in ("share of attention (%)", "attention (%)"):
        axes = curves(figure, label)
        assert axes
    shares = [axes for axes in figure.axes if axes.get_xlabel() == "layer" and axes.lines]
    assert len(shares) == 4
    assert shares[0].get_ylim() == shares[1].get_ylim() and shares[2].get_ylim() == shares[3].get_ylim()
    first, second, *_ = meshes(figure)
    assert first[1].get_clim() == second[1].get_clim()
    [legend] = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert len(set(names)) == len(names) == 9  # eight groups, and uniform attention
    assert all(axes.get_legend() is None for axes in figure.axes)


def test_names_have_no_folders_and_stay_apart() -> None:
    def runs(*names: str | None) -> list[str]:
        return display_names([made_run(name) for name in names])

    assert runs("runs/a", None) == ["a", "bare base"]
    assert runs("/home/me/x/last", "/home/me/y/last") == ["x/last", "y/last"]
    assert runs("last", "y/last") == ["last", "y/last"]
    assert runs("runs/demo/") == ["demo"]
    labelled = dataclasses.replace(made_run("runs/a"), label="M²PT / ours")
    assert display_names([labelled, made_run("x/a")]) == ["M²PT / ours", "a"]
    figure = attention_figure(made_maps(labelled, made_run(None, textual=0, visual=0)))
    assert "M²PT / ours" in {axes.get_title(loc="left").split("\n")[0] for axes in figure.axes}


def test_a_title_of_ones_own_or_none() -> None:
    maps = made_maps(question="what is it?")
    assert attention_figure(maps).get_suptitle() == "“what is it?” nano, a"
    own = attention_figure(maps, title="Ours costs $5_{x}")
    assert own.get_suptitle() == "Ours costs $5_{x}"
    none = attention_figure(maps, title="")
    assert none.get_suptitle() == ""
    assert none.get_figheight() < own.get_figheight()


def test_rows_never_leave_the_page() -> None:
    def block(kind: str, width: float) -> Block:
        return Block(kind, kind, width, 1.0, lambda _: None)

    rows = rows_of(
        [block("image", 4), block("maps", 2.9), block("shares", 3.5), block("ratios", 3.5), block("maps", 3)]
    )
    assert [[one.kind for one in row] for row in rows] == [["image", "maps"], ["shares", "ratios"], ["maps"]]


@pytest.mark.parametrize("suffix", [".svg", ".pdf", ".PNG"])
def test_files_by_suffix(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"map{suffix}"
    draw_attention(made_maps(question="costs $5 or $6_{x}?"), file, parts=("overlay", "vision"))
    content = file.read_bytes()
    if suffix == ".svg":
        root = ElementTree.parse(file).getroot()
        assert root.tag.endswith("svg")
        # The image and its grey copy are pixels, and the bar's gradient; the maps are not.
        assert 2 <= sum(one.tag.endswith("image") for one in root.iter()) <= 4
    else:
        assert content[:4] == (b"%PDF" if suffix == ".pdf" else b"\x89PNG")
    if suffix == ".pdf":
        assert b"/Type3" not in content  # publishers refuse it
    if suffix == ".PNG":
        assert 1200 < Image.open(file).width <= 1400  # 200 dots per inch
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
