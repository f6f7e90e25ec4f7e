"""Draw the figure of ``m2pt attn-map``: blocks of fixed size on a two-column page, with one shared legend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2pt_cli.analysis.attention_layout import (
    BLOCK,
    HEADER,
    LABEL,
    MARGIN,
    STYLES,
    TITLE,
    UNIFORM,
    Area,
    Block,
    Scene,
    rows_of,
    widths_in,
    words,
)
from m2pt_cli.analysis.attention_maps import AttentionMaps
from m2pt_cli.analysis.attention_overlays import BLOCKS
from m2pt_cli.analysis.figure_file import save_figure
from m2pt_cli.analysis.figure_text import fit, text_width

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DOTS_PER_INCH = 200
# Inches: height of a title line, gap between two rows of blocks, height of a legend line.
_TITLE_LINE, _BETWEEN_ROWS, _LEGEND_LINE = 0.19, 0.08, 0.15


def draw_attention(
    maps: AttentionMaps,
    file: Path,
    *,
    parts: Sequence[str] = (),
    drop_sinks: bool = False,
    title: str | None = None,
) -> None:
    """Draw the attention maps and write the figure atomically.

    Args:
        file: PNG, SVG or PDF by its suffix.
        parts: of ``settings.ATTENTION_PARTS``; all if empty.
        drop_sinks: leave the first token out of the curves of shares and of the scale of single tokens; the figure
            gives its values. Ratios keep it.
        title: title of the figure; None for the question and the base, an empty string for no title.
    """
    figure = attention_figure(maps, parts=parts, drop_sinks=drop_sinks, title=title)
    save_figure(figure, file, program="m2pt attn-map")


def attention_figure(
    maps: AttentionMaps, *, parts: Sequence[str] = (), drop_sinks: bool = False, title: str | None = None
) -> Figure:
    """Return the figure, at most 7 inches wide; see `draw_attention`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scene = Scene(maps, drop_sinks)
    blocks = [block for part, make in BLOCKS if not parts or part in parts for block in make(scene)]
    rows = rows_of(blocks)
    width = max(sum(block.width for block in row) for row in rows)
    head = fit(_title(scene) if title is None else title, width - 2 * MARGIN, TITLE, lines=2)
    handles = _legend(blocks)
    columns = _legend_columns([label for _, label in handles], width)
    above = MARGIN + (len(head.splitlines()) * _TITLE_LINE + 0.06 if head else 0)
    under = MARGIN + (-(-len(handles) // columns) * _LEGEND_LINE + 0.06 if handles else 0)
    heights = [max(block.height for block in row) for row in rows]
    height = above + sum(heights) + _BETWEEN_ROWS * (len(rows) - 1) + under
    figure = Figure(figsize=(width, height), dpi=_DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    if head:
        figure.suptitle(head, x=0.5, y=1 - MARGIN / height, va="top", fontsize=TITLE, parse_math=False)
    letters = iter("abcdefghijklmnopqrstuvwxyz"[: len(blocks)] if len(blocks) > 1 else [""])
    top = above
    for row, high in zip(rows, heights, strict=True):
        left = 0.0
        for block, wide in zip(row, widths_in(row, width), strict=True):
            _draw(block, Area(figure, left, top, wide), next(letters))
            left += wide
        top += high + _BETWEEN_ROWS
    if handles:
        figure.legend(
            [handle for handle, _ in handles],
            [label for _, label in handles],
            loc="lower center",
            bbox_to_anchor=(0.5, 0.5 * MARGIN / height),
            ncols=columns,
            fontsize=LABEL,
            frameon=False,
            borderaxespad=0,
            borderpad=0.1,
            labelspacing=0.3,
            handlelength=2.2,
            columnspacing=1.4,
        )
    return figure


def _draw(block: Block, area: Area, letter: str) -> None:
    indent = MARGIN
    if letter:
        area.text(indent, 0, f"({letter})", fontsize=BLOCK, fontweight="bold")
        indent += text_width(f"({letter})", BLOCK, bold=True) + 0.05
    area.text(indent, 0, fit(block.title, area.width - indent - MARGIN, BLOCK), fontsize=BLOCK)
    block.draw(Area(area.figure, area.left, area.top + HEADER, area.width))


def _legend(blocks: Sequence[Block]) -> list[tuple[Any, str]]:
    """Return a legend entry for every group that a block colours, and for uniform attention."""
    from matplotlib.lines import Line2D

    present = {group for block in blocks for group in block.groups}
    found: list[tuple[Any, str]] = []
    styles: Any = STYLES
    for group, (colour, marker, line) in styles.items():
        if group in present:
            handle = Line2D([], [], color=colour, marker=marker, linestyle=line, markersize=3.5, linewidth=1.2)
            found.append((handle, words(group)))
    if any(block.has_uniform for block in blocks):
        found.append((Line2D([], [], color="#222222", linestyle=(0, (1, 1.5)), linewidth=1), UNIFORM))
    return found


def _legend_columns(labels: Sequence[str], width: float) -> int:
    """Return the number of legend columns: as many as fit, with entries spread evenly over the lines."""
    if not labels:
        return 1
    each = max(text_width(label, LABEL) for label in labels) + 0.47
    most = max(1, int((width - 2 * MARGIN) / each))
    lines = -(-len(labels) // most)
    return -(-len(labels) // lines)


def _title(scene: Scene) -> str:
    """Return the default title: question, base and chosen heads, and the run if there is only one."""
    maps = scene.maps
    chosen = ((maps.heads, "language model"), (maps.vision_heads, "vision tower"))
    heads = "".join(
        f", head{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))} of the {part}"
        for numbers, part in chosen
        if numbers
    )
    run = f", {scene.label(maps.runs[0])}" if len(maps.runs) == 1 else ""
    base = maps.base.rstrip("/").rsplit("/", 1)[-1]
    return f"“{maps.question.strip()}”  {base}{run}{heads}"
