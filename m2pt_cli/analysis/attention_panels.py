"""Figure blocks for attention on token groups and on single tokens, in language model and vision tower."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2pt_cli.analysis.attention_layout import (
    BAR,
    GAP,
    HALF,
    HEADER,
    LABEL,
    LEFT,
    MARGIN,
    NOTE,
    PAGE,
    PANEL_LINE,
    STYLES,
    TICK,
    UNDER,
    Area,
    Block,
    Scene,
    labels_width,
    name_places,
    panel_title,
    short_token,
    whole_numbers,
    words,
)
from m2pt_cli.analysis.attention_maps import AttentionRun, PartAttention
from m2pt_cli.analysis.figure_text import text_width
from m2pt_cli.analysis.tokens import FIRST, TEXTUAL, VISUAL

PARTS = {"language": "language model", "vision": "vision tower"}
# The most tokens that can be labelled under a curve of page width; more are numbered.
MOST_NAMED = 64
MOST_CURVES = 4
_SHARES, _GROUP, _CURVE = 1.1, 0.14, 0.8  # inches: height of a shares panel, of a group's row, of a curve


def part_of(run: AttentionRun, name: str) -> PartAttention | None:
    """Return a run's attention in the language model or the vision tower."""
    return run.language if name == "language" else run.vision


def _looked_at(scene: Scene, name: str) -> list[tuple[AttentionRun, PartAttention]]:
    found = [(run, part_of(run, name)) for run in scene.maps.runs]
    return [(run, part) for run, part in found if part is not None]


def _columns(count: int) -> int:
    """Return the number of panels per line."""
    return count if count <= 4 else 3


def _groups(parts: Sequence[PartAttention]) -> tuple[str, ...]:
    present = {group for part in parts for group in part.tokens.names}
    return tuple(group for group in STYLES if group in present)


def shares_block(scene: Scene, name: str) -> list[Block]:
    """Draw each group's share of attention in every layer: a panel for each run."""
    found = _looked_at(scene, name)
    if not found:
        return []
    columns = _columns(len(found))
    lines = math.ceil(len(found) / columns)
    titled = len(scene.maps.runs) > 1
    has_note = scene.drop_sinks and name == "language"
    above = 0.06 + PANEL_LINE * (titled + has_note)
    row = above + _SHARES + (UNDER if lines == 1 else 0.2 + PANEL_LINE)
    width = HALF if len(found) <= 2 else PAGE
    top = 1.06 * scene.top(lambda run: _highest_share(part_of(run, name), scene))

    def draw(area: Area) -> None:
        each = (area.width - LEFT - MARGIN - GAP * (columns - 1)) / columns
        for number, (run, part) in enumerate(found):
            line, column = divmod(number, columns)
            axes = area.axes(LEFT + column * (each + GAP), line * row + above, each, _SHARES)
            note = _draw_shares(axes, part, scene)
            panel_title(axes, scene.label(run) if titled else note, each, note=note if titled else "")
            axes.set_ylim(0, top)
            whole_numbers(axes.xaxis)
            whole_numbers(axes.yaxis, 5)
            axes.set_xlabel("layer", fontsize=LABEL, labelpad=2)
            if column == 0:
                axes.set_ylabel("share of attention (%)", fontsize=LABEL, labelpad=2)
            else:
                axes.tick_params(labelleft=False)

    title = f"Share of attention by group, {PARTS[name]}"
    height = HEADER + lines * row + (0 if lines == 1 else UNDER - 0.2 - PANEL_LINE)
    return [Block("shares", title, width, height, draw, _groups([part for _, part in found]), has_uniform=True)]


def _draw_shares(axes: Any, part: PartAttention, scene: Scene) -> str:
    """Draw the lines of one part; return a note on the group that is not drawn, or an empty string."""
    layers = np.arange(part.num_layers)
    uniform = part.uniform_shares()
    note = ""
    for group, share in part.shares().items():
        if group == FIRST and scene.drop_sinks:
            note = f"first token, not drawn: {100 * share.min():.0f} to {100 * share.max():.0f} %"
            continue
        colour, marker, line = STYLES[group]
        is_prompt = group in (TEXTUAL, VISUAL)
        axes.plot(
            layers,
            100 * share,
            color=colour,
            marker=marker,
            linestyle=line,
            markersize=3 if part.num_layers <= 16 else 2,
            linewidth=1.6 if is_prompt else 0.9,
            label=group,
            zorder=3 if is_prompt else 2,
            clip_on=False,
        )
        if is_prompt:
            axes.axhline(100 * uniform[group], color=colour, linestyle=(0, (1, 1.5)), linewidth=1)
    axes.grid(alpha=0.3, linewidth=0.5)
    return note


def ratios_block(scene: Scene, name: str) -> list[Block]:
    """Draw each group's attention relative to uniform attention in every layer: a panel for each run."""
    found = _looked_at(scene, name)
    if not found:
        return []
    highest = max(float(np.abs(log_ratios(part)).max()) for _, part in found)
    bound = min(max(1, math.ceil(highest)), 6)  # ratios beyond 64 share one colour
    groups = _groups([part for _, part in found])
    columns = _columns(len(found))
    lines = math.ceil(len(found) / columns)
    titled = len(scene.maps.runs) > 1
    above = 0.06 + PANEL_LINE * titled
    high = max(_GROUP * len(groups), 0.6)
    row = above + high + (UNDER if lines == 1 else 0.2 + PANEL_LINE)
    width = HALF if len(found) <= 2 else PAGE
    left = labels_width([words(group) for group in groups]) + 0.16

    def draw(area: Area) -> None:
        each = (area.width - left - BAR - GAP * (columns - 1)) / columns
        image = None
        for number, (run, part) in enumerate(found):
            line, column = divmod(number, columns)
            axes = area.axes(left + column * (each + GAP), line * row + above, each, high)
            # Every panel has the rows of all runs; a group that this run lacks is grey.
            rows = dict(zip(part.tokens.names, log_ratios(part), strict=True))
            lacking = np.full(part.num_layers, np.nan)
            values = np.ma.masked_invalid([rows.get(group, lacking) for group in groups])
            axes.set_facecolor("#EEEEEE")
            image = cells(axes, values, cmap="PuOr_r", vmin=-bound, vmax=bound)
            if titled:
                panel_title(axes, scene.label(run), each)
            whole_numbers(axes.xaxis)
            axes.set_xlabel("layer", fontsize=LABEL, labelpad=2)
            name_places(axes.yaxis, [words(group) for group in groups], high)
            axes.tick_params(axis="y", length=0, labelleft=column == 0)
        ticks = list(range(-bound, bound + 1, 1 if bound <= 2 else 2 if bound <= 4 else 3))
        bar = area.colour_bar(
            image,
            area.width - BAR + 0.08,
            above,
            (lines - 1) * row + high,
            "",
            ticks=ticks,
            extend="both" if highest > bound else "neither",
        )
        bar.ax.set_yticklabels([f"{2**tick}×" if tick >= 0 else f"1/{2**-tick}×" for tick in ticks], fontsize=TICK)

    height = HEADER + lines * row + (0 if lines == 1 else UNDER - 0.2 - PANEL_LINE)
    return [Block("ratios", f"Attention per token / uniform, {PARTS[name]}", width, height, draw)]


def log_ratios(part: PartAttention) -> NDArray[np.float32]:
    """Return log2 of each group's attention over its uniform attention ``(groups, layers)``."""
    shares, uniform = part.shares(), part.uniform_shares()
    return np.log2([np.maximum(shares[group], 1e-9) / uniform[group] for group in part.tokens.names])


def cells(axes: Any, values: NDArray[Any], **how: Any) -> Any:
    """Draw a heat map, row 0 on top: vector graphics in a PDF or SVG, with edges between the cells."""
    rows, columns = values.shape
    mesh = axes.pcolormesh(
        np.arange(columns + 1) - 0.5,
        np.arange(rows + 1) - 0.5,
        values,
        edgecolors="face",
        linewidth=0.1,
        **how,
    )
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    return mesh


def curves_block(scene: Scene, name: str) -> list[Block]:
    """Draw the attention each token receives: a panel per run and selected layer (language model: or the middle)."""
    found = _looked_at(scene, name)
    if not found:
        return []
    if name == "language":
        layers = scene.maps.layers[:MOST_CURVES] or (found[0][1].num_layers // 2,)
    else:
        layers = scene.maps.vision_layers[:MOST_CURVES]
    top = 1.08 * scene.top(lambda run: _highest_curve(part_of(run, name), layers, scene))
    last = found[0][1].num_layers - 1
    numbers = f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))} of 0 to {last}"
    most = max(len(part.tokens) for _, part in found)
    # The vision tower's tokens fit half a page; with many panels each gets half a page.
    panels = [(run, part, layer) for run, part in found for layer in layers]
    is_half = name == "vision" or len(panels) > 2
    columns = 2 if is_half and len(panels) > 1 else 1
    width = HALF if is_half and columns == 1 else PAGE
    lines = math.ceil(len(panels) / columns)
    title_lines = 1 if len(scene.maps.runs) > 1 or len(layers) > 1 or scene.drop_sinks else 0
    above = 0.06 + PANEL_LINE * title_lines
    named = most <= MOST_NAMED
    labels = [short_token(label) for _, part in found for label in part.tokens.labels] if named else []
    under = labels_width(labels) + 0.1 if named else UNDER
    row = above + _CURVE + under

    def draw(area: Area) -> None:
        each = (area.width - columns * LEFT - (columns - 1) * GAP - MARGIN) / columns
        for number, (run, part, layer) in enumerate(panels):
            line, column = divmod(number, columns)
            axes = area.axes(LEFT + column * (each + LEFT + GAP), line * row + above, each, _CURVE)
            _draw_one_curve(axes, part, layer, top)
            said = [scene.label(run)] if len(scene.maps.runs) > 1 else []
            said += [f"layer {layer}"] if len(layers) > 1 else []
            left_out = _left_out(axes, part, layer, top, scene)
            if left_out:
                axes.set_title(left_out, fontsize=TICK, loc="right", pad=3, color=NOTE)
            panel_title(axes, ", ".join(said), each - (text_width(left_out, TICK) + 0.1 if left_out else 0))
            if named:
                name_places(axes.xaxis, [short_token(label) for label in part.tokens.labels], each, turned=True)
                axes.tick_params(axis="x", length=0)
            else:
                axes.set_xlabel("token, counted from the first prompt", fontsize=LABEL, labelpad=2)
            axes.set_ylabel("attention (%)", fontsize=LABEL, labelpad=2)

    title = f"Attention on each token, {PARTS[name]}, {numbers}"
    height = HEADER + lines * row
    return [Block("curves", title, width, height, draw, _groups([part for _, part in found]), has_uniform=True)]


def _left_out(axes: Any, part: PartAttention, layer: int, top: float, scene: Scene) -> str:
    """Mark a first token beyond the scale with a triangle; return a note with its value."""
    kept = scene.kept(part)
    if kept.all():
        return ""
    value = 100 * float(part.received[layer, ~kept][0])
    if value > top:
        axes.plot(np.flatnonzero(~kept), [0.93 * top], marker=6, color=STYLES[FIRST][0], markersize=4)
    return f"first token, not in the scale: {value:.1f} %"


def _draw_one_curve(axes: Any, part: PartAttention, layer: int, top: float) -> None:
    tokens, values = part.tokens, 100 * part.received[layer]
    axes.plot(values, color="#999999", linewidth=0.6)
    axes.plot(100 * part.uniform, color="#222222", linewidth=0.8, linestyle=(0, (1, 1.5)))
    for group in tokens.names:
        colour, marker, _ = STYLES[group]
        own = tokens.places(group)
        axes.axvspan(own[0] - 0.5, own[-1] + 0.5, color=colour, alpha=0.10, linewidth=0)
        shown = own[values[own] <= top]
        size = 12 if group in (TEXTUAL, VISUAL) else 7
        axes.scatter(shown, values[shown], s=size, color=colour, marker=marker, label=group, zorder=3, linewidth=0.7)
    axes.set_xlim(-0.8, len(tokens) - 0.2)
    axes.set_ylim(0, top)
    whole_numbers(axes.xaxis, 12)
    from matplotlib.ticker import MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.grid(alpha=0.3, axis="y", linewidth=0.5)


def _highest_share(part: PartAttention | None, scene: Scene) -> NDArray[np.float32] | None:
    if part is None:
        return None
    return np.stack([share for name, share in part.shares().items() if not (scene.drop_sinks and name == FIRST)])


def _highest_curve(part: PartAttention | None, layers: Sequence[int], scene: Scene) -> NDArray[np.float32] | None:
    return None if part is None else part.received[list(layers)][:, scene.kept(part)]
