"""Figure blocks for attention on the image and on prompts, and the list of all blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2pt_cli.analysis.attention_layout import (
    BAR,
    GAP,
    HEADER,
    LABEL,
    LEFT,
    MAP,
    MARGIN,
    PAGE,
    PANEL,
    PANEL_LINE,
    UNDER,
    Area,
    Block,
    Scene,
    labels_width,
    name_places,
    panel_title,
    short_token,
    whole_numbers,
)
from m2pt_cli.analysis.attention_maps import AttentionMaps, AttentionRun, LanguageAttention
from m2pt_cli.analysis.attention_panels import cells, curves_block, ratios_block, shares_block
from m2pt_cli.analysis.figure_text import fit
from m2pt_cli.analysis.tokens import TEXTUAL, VISUAL

# Inches: longest side of an image, gap between images, gap to the colour bar, height of a map's row, width of a map.
_SIDE, _BETWEEN, _TO_BAR, _ROW, _NARROW = 1.55, 0.1, 0.08, 0.13, 2.9
_MOST_BESIDE = 4
# Inches for the colour bar of the overlays; its label has two lines.
_IMAGE_BAR = 0.68
# The image under an overlay: grey value of black, and opacity of the overlay's colours.
_BLACK, _COVER = 70, 0.62


def overlay_block(scene: Scene) -> list[Block]:
    """Draw the image, and the answer's attention on it for every run, selected layer, head and token."""
    runs = [(run, run.language) for run in scene.maps.runs if run.language is not None]
    if not runs:
        return []
    choices = _overlays(scene.maps)
    beside = _columns(len(runs), len(choices))
    # Runs per line, and lines per run.
    abreast, each_run = max(1, beside // len(choices)), math.ceil(len(choices) / beside)
    lines = math.ceil(len(runs) / abreast) * each_run
    side = min(
        _SIDE if beside == 1 else 1.85, (PAGE - MARGIN - _IMAGE_BAR - _TO_BAR - beside * _BETWEEN) / (beside + 1)
    )
    picture = runs[0][0].picture
    high = side * picture.shape[0] / picture.shape[1]
    titles = [_overlay_title(scene, run, choice, side) for run, _ in runs for choice in choices]
    title_lines = max(len(title) for title in titles)
    # With several choices, run and answer get a separate line over the first.
    has_heads = len(choices) > 1
    above = 0.06 + PANEL_LINE * (title_lines + has_heads)
    row = above + high + 0.04
    width = MARGIN + (beside + 1) * side + beside * _BETWEEN + _TO_BAR + _IMAGE_BAR
    top = scene.top(lambda run: None if run.language is None else np.stack([overlay(run.language, c) for c in choices]))

    def draw(area: Area) -> None:
        first = area.axes(MARGIN, above, side, high)
        first.imshow(picture, interpolation="bilinear")
        first.set(xticks=[], yticks=[])
        panel_title(first, "image", side)
        mesh = None
        for number, title in enumerate(titles):
            own, place = divmod(number, len(choices))
            line, column = own // abreast * each_run + place // beside, own % abreast * len(choices) + place % beside
            left = MARGIN + (column + 1) * (side + _BETWEEN)
            axes = area.axes(left, line * row + above, side, high)
            if has_heads and place == 0:
                room = min(beside, len(choices)) * (side + _BETWEEN) - _BETWEEN
                area.text(left, line * row + 0.04, _head(scene, runs[own][0], room), fontsize=PANEL)
            mesh = _draw_heat(axes, runs[own][0].picture, overlay(runs[own][1], choices[place]), top)
            text = "\n".join([*title, *[" "] * (title_lines - len(title))])
            axes.set_title(text, fontsize=PANEL, loc="left", pad=3, linespacing=1.15, parse_math=False)
        uniform = 100 * runs[0][1].overlay_uniform()
        label = "attention on a patch (%)" + ("\ndashed: if uniform" if uniform < top else "")
        bar = area.colour_bar(mesh, width - _IMAGE_BAR, above, (min(lines, 3) - 1) * row + high, label)
        if uniform < top:
            bar.ax.axhline(uniform, color="white", linewidth=1.8)
            bar.ax.axhline(uniform, color="black", linewidth=0.9, linestyle=(0, (2, 1)))

    said = f", {_choice_words(choices[0])}" if len(choices) == 1 else ""
    return [Block("image", f"Attention of the answer on the image{said}", width, HEADER + lines * row, draw)]


def _columns(runs: int, choices: int) -> int:
    """Return the number of overlays per line, without the plain image."""
    if choices == 1:
        return runs if runs <= _MOST_BESIDE else 3
    if runs == 1 or choices > _MOST_BESIDE:
        return choices if choices <= _MOST_BESIDE else 3 if choices % 3 == 0 else _MOST_BESIDE
    return choices * (_MOST_BESIDE // choices)


def _draw_heat(axes: Any, picture: NDArray[np.uint8], heat: NDArray[np.float32], top: float) -> Any:
    """Draw the image in light greys, and a coloured square for every patch over it."""
    height, width = picture.shape[:2]
    grey = _BLACK + picture.mean(-1) * (1 - _BLACK / 255)
    axes.imshow(grey, cmap="gray", vmin=0, vmax=255, interpolation="bilinear")
    rows, columns = heat.shape
    mesh = axes.pcolormesh(
        np.linspace(-0.5, width - 0.5, columns + 1),
        np.linspace(-0.5, height - 0.5, rows + 1),
        100 * heat,
        cmap=MAP,
        vmin=0,
        vmax=top,
        alpha=_COVER,
        edgecolors=(1, 1, 1, 0.35),
        linewidth=0.5 if rows <= 12 else 0.2,
    )
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
    return mesh


Choice = tuple[int | None, int, int | None, int | None]


def overlay(language: LanguageAttention, choice: Choice) -> NDArray[np.float32]:
    """Return the attention on each patch ``(grid, grid)`` for one choice."""
    layer, place, token, _ = choice
    return language.overlay([] if layer is None else [layer], place, [] if token is None else [token])


def _overlays(maps: AttentionMaps) -> list[Choice]:
    """Return layer, position among the heads, token and head index of every overlay; None for the mean."""
    layers: Sequence[int | None] = maps.layers or (None,)
    tokens: Sequence[int | None] = maps.tokens or (None,)
    heads: Sequence[int | None] = maps.heads or (None,)
    return [(layer, place, token, head) for layer in layers for place, head in enumerate(heads) for token in tokens]


def _choice_words(choice: Choice) -> str:
    layer, _, _, head = choice
    said = ["mean of layers" if layer is None else f"layer {layer}"]
    said += [] if head is None else [f"head {head}"]
    return ", ".join(said)


def _head(scene: Scene, run: AttentionRun, room: float) -> str:
    answer = f"“{run.answer or '(nothing)'}”"
    return fit(f"{scene.label(run)}: {answer}" if len(scene.maps.runs) > 1 else answer, room, PANEL)


def _overlay_title(scene: Scene, run: AttentionRun, choice: Choice, side: float) -> list[str]:
    """Return the title lines of an overlay: run and answer, or the choice if there are several."""
    if len(_overlays(scene.maps)) > 1:
        return [fit(_choice_words(choice), side, PANEL), *_token_word(run, choice, side)]
    named = [fit(scene.label(run), side, PANEL)] if len(scene.maps.runs) > 1 else []
    answer = fit(f"“{run.answer or '(nothing)'}”", side, PANEL, lines=2).splitlines()
    return [*named, *answer, *_token_word(run, choice, side)]


def _token_word(run: AttentionRun, choice: Choice, side: float) -> list[str]:
    token = choice[2]
    return [] if token is None else [fit(f"token {token}: “{run.answer_tokens[token]}”", side, PANEL)]


def answer_on_prompts_block(scene: Scene) -> list[Block]:
    """Draw each answer token's attention on the prompts: a panel for each run with prompts in the language model."""
    layers = scene.maps.layers
    found = []
    for run in scene.maps.runs:
        if run.language is not None and len(run.language.tokens.places(TEXTUAL, VISUAL)):
            values, prompts = run.language.answer_on_prompts(layers)
            found.append(_Map(run, values, [short_token(token) for token in run.answer_tokens], prompts))
    where = f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}" if layers else "mean of layers"
    return _maps_block(scene, found, f"Answer tokens on prompts, {where}", "prompt", "answer token")


def patches_on_prompts_block(scene: Scene) -> list[Block]:
    """Draw the patches' attention on visual prompts by layer: a panel for each run with visual prompts."""
    found = []
    for run in scene.maps.runs:
        if run.vision is not None and len(places := run.vision.tokens.places(VISUAL)):
            values = run.vision.from_patches[:, places]
            found.append(_Map(run, values, None, [f"v{number}" for number in range(len(places))]))
    title = "Patches on visual prompts, vision tower"
    return _maps_block(scene, found, title, "visual prompt", "layer")


def projected_prompts_block(scene: Scene) -> list[Block]:
    """Draw attention on projected visual prompts in the language model (``visual_tokens="official"``), by layer."""
    found = []
    for run in scene.maps.runs:
        if run.language is not None and len(places := run.language.tokens.places(VISUAL)):
            labels = [run.language.tokens.labels[place] for place in places]
            found.append(_Map(run, run.language.received[:, places], None, labels))
    title = "Projected visual prompts, language model"
    return _maps_block(scene, found, title, "visual prompt, as image token", "layer")


@dataclass(frozen=True)
class _Map:
    """Attention ``(rows, columns)``, 0-1, of one run; rows without labels are numbered."""

    run: AttentionRun
    values: NDArray[np.float32]
    rows: list[str] | None
    columns: list[str]


def _maps_block(scene: Scene, found: Sequence[_Map], title: str, across: str, down: str) -> list[Block]:
    if not found:
        return []
    titled = len(scene.maps.runs) > 1
    columns = len(found) if len(found) <= 3 else math.ceil(len(found) / 2)
    lines = math.ceil(len(found) / columns)
    above = 0.06 + PANEL_LINE * titled
    most = max(len(one.values) for one in found)
    high = min(max(_ROW * most, 0.66), 2.6)
    row = above + high + UNDER
    width = _NARROW if len(found) == 1 else PAGE
    widest = max(0.16 if one.rows is None else labels_width(one.rows) for one in found)
    left = max(LEFT, widest + 0.3)
    top = 100 * max(float(one.values.max()) for one in found)

    def draw(area: Area) -> None:
        each = (area.width - columns * left - (columns - 1) * GAP - BAR - _TO_BAR) / columns
        mesh = None
        for number, one in enumerate(found):
            line, column = divmod(number, columns)
            axes = area.axes(left + column * (each + left + GAP), line * row + above, each, high)
            mesh = cells(axes, 100 * one.values, cmap=MAP, vmin=0, vmax=top)
            if titled:
                panel_title(axes, scene.label(one.run), each)
            name_places(axes.xaxis, one.columns, each)
            if one.rows is None:
                whole_numbers(axes.yaxis)
            else:
                name_places(axes.yaxis, one.rows, high)
            axes.set_xlabel(across, fontsize=LABEL, labelpad=2)
            axes.set_ylabel(down, fontsize=LABEL, labelpad=2)
        area.colour_bar(mesh, area.width - BAR, above, (lines - 1) * row + high, "attention (%)")

    return [Block("maps", title, width, HEADER + lines * row, draw)]


# The blocks in figure order, each with its part of ``settings.ATTENTION_PARTS``.
BLOCKS: tuple[tuple[str, Callable[[Scene], list[Block]]], ...] = (
    ("overlay", overlay_block),
    ("prompts", answer_on_prompts_block),
    ("language", partial(shares_block, name="language")),
    ("vision", partial(shares_block, name="vision")),
    ("language", partial(ratios_block, name="language")),
    ("vision", partial(ratios_block, name="vision")),
    ("language", partial(curves_block, name="language")),
    ("vision", partial(curves_block, name="vision")),
    ("prompts", patches_on_prompts_block),
    ("prompts", projected_prompts_block),
)
