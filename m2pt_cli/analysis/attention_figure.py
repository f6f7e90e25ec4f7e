"""The figure of ``m2pt attn-map``: the panels of one run in two columns, or one column per run.

It does not use pyplot, so it needs no display and has no global state. Colours are those of Okabe and Ito and viridis,
which colour-blind readers can distinguish; markers and numbers give the same information.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2pt_cli.analysis.attention_maps import AttentionMaps, AttentionRun
from m2pt_cli.analysis.attention_overlays import PANELS, Panel
from m2pt_cli.analysis.attention_panels import Scene, plain, readable
from m2pt_cli.analysis.figure_file import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Inches.
_COLUMN, _HEAD = 6.2, 0.95


def draw_attention(maps: AttentionMaps, file: Path, *, parts: Sequence[str] = (), drop_sinks: bool = False) -> None:
    """Draw the attention maps and write the figure atomically.

    Args:
        file: PNG, SVG or PDF, by its suffix.
        parts: parts to draw, of ``settings.ATTENTION_PARTS``; all if empty.
        drop_sinks: exclude the first token from the scales, and say so in the figure.
    """
    save_figure(attention_figure(maps, parts=parts, drop_sinks=drop_sinks), file, program="m2pt attn-map")


def attention_figure(maps: AttentionMaps, *, parts: Sequence[str] = (), drop_sinks: bool = False) -> Figure:
    """Return the figure; arguments as in `draw_attention`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scene = Scene(maps, drop_sinks)
    shown = [panel for panel in PANELS if not parts or panel.part in parts]
    shown = [panel for panel in shown if any(panel.applies(run) for run in maps.runs)]
    rows = [[panel] for panel in shown] if len(maps.runs) > 1 else _paired(shown)
    heights = [max(panel.height(scene) for panel in row) for row in rows]
    columns = max(len(maps.runs), 2 if any(len(row) > 1 or row[0].is_wide for row in rows) else 1)
    figure = Figure(figsize=(_COLUMN * columns, _HEAD + sum(heights)), dpi=130)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.06)
    FigureCanvasAgg(figure)
    figure.suptitle(_title(maps, width=52 * columns), fontsize=12, parse_math=False)
    bands: Any = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)
    for number, row in enumerate(rows):
        band = bands[number, 0]
        if len(maps.runs) > 1:
            cells = band.subfigures(1, columns, squeeze=False)[0]
            for cell, run in zip(cells, maps.runs, strict=True):
                if number == 0:
                    cell.suptitle(_run_title(run), fontsize=11, fontweight="bold")
                _draw(row[0], cell, run, scene)
        elif row[0].is_wide or columns == 1:
            _draw(row[0], band, maps.runs[0], scene)
        else:
            cells = band.subfigures(1, columns, squeeze=False)[0]
            for cell, panel in zip(cells, row, strict=False):
                _draw(panel, cell, maps.runs[0], scene)
    return figure


def _draw(panel: Panel, cell: Any, run: AttentionRun, scene: Scene) -> None:
    if panel.applies(run):
        panel.draw(cell, run, scene)
    else:
        axes = cell.add_subplot()
        axes.axis("off")
        axes.text(0.5, 0.5, panel.absent, ha="center", va="center", fontsize=10, color="#666666")


def _paired(panels: Sequence[Panel]) -> list[list[Panel]]:
    """Arrange panels in rows of two narrow panels or one wide panel, in order."""
    rows: list[list[Panel]] = []
    for panel in panels:
        if rows and not panel.is_wide and len(rows[-1]) == 1 and not rows[-1][0].is_wide:
            rows[-1].append(panel)
        else:
            rows.append([panel])
    return rows


def _title(maps: AttentionMaps, *, width: int) -> str:
    question = textwrap.shorten(readable(maps.question), 2 * width, placeholder=" …")
    chosen = ((maps.heads, "language model"), (maps.vision_heads, "vision tower"))
    heads = "".join(
        f", head{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))} of the {part}"
        for numbers, part in chosen
        if numbers
    )
    lines = textwrap.wrap(f"“{question}”  {maps.base}{heads}", width)
    if len(maps.runs) == 1:
        lines += textwrap.wrap(_run_title(maps.runs[0]).replace("\n", ": "), width)
    return "\n".join(lines)


def _run_title(run: AttentionRun) -> str:
    name = run.name if len(run.name) <= 48 else f"…{run.name[-47:]}"
    if run.answer is None:
        return plain(name)
    answer = textwrap.shorten(run.answer, 56, placeholder=" …") or "(nothing)"
    return plain(f"{name}\n“{answer}”")
