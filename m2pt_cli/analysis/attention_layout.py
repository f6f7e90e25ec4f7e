"""Layout of the attention figure: blocks of fixed size in inches, fitted text, one legend.

It does not use pyplot, so it needs no global state and no display. All sizes are in inches or points: a figure 7
inches wide fits a two-column paper without scaling, with text of at least 6.5 points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from m2pt_cli.analysis.attention_maps import AttentionMaps, AttentionRun, PartAttention
from m2pt_cli.analysis.figure_text import fit, readable, text_width
from m2pt_cli.analysis.tokens import ANSWER, CLASS, FIRST, IMAGE, QUESTION, SYSTEM, TEXTUAL, VISUAL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Inches: width of a two-column page, and half of it.
PAGE, HALF = 7.0, 3.5
# Points: tick labels, axis labels, panel titles, block titles, the figure's title.
TICK, LABEL, PANEL, BLOCK, TITLE = 6.5, 7.0, 7.0, 8.0, 9.0
# Inches: block title, one line of a panel title, tick labels and label under an axis, gap between panels, margin.
HEADER, PANEL_LINE, UNDER, GAP, MARGIN = 0.2, 0.14, 0.32, 0.14, 0.08
# Inches on the left of a panel for tick labels and axis label, and on the right for a colour bar.
LEFT, BAR = 0.46, 0.55
NOTE = "#555555"

# Colour, marker and line style of every group; the colour-blind safe palette of Okabe and Ito.
STYLES: dict[str, tuple[str, str, str]] = {
    TEXTUAL: ("#D55E00", "o", "-"),
    VISUAL: ("#E69F00", "s", "-"),
    FIRST: ("#666666", "x", ":"),
    CLASS: ("#CC79A7", "D", "-."),
    SYSTEM: ("#56B4E9", "^", "--"),
    IMAGE: ("#0072B2", "v", "-"),
    QUESTION: ("#009E73", "P", "--"),
    ANSWER: ("#000000", "*", "-."),
}
UNIFORM = "uniform attention"
MAP = "viridis"


@dataclass(frozen=True)
class Scene:
    """Data shared by all blocks of a figure."""

    maps: AttentionMaps
    drop_sinks: bool

    def label(self, run: AttentionRun) -> str:
        """Return the display name of a run: its label, or the shortest unique suffix of its path."""
        return display_names(self.maps.runs)[self.maps.runs.index(run)]

    def top(self, values: Callable[[AttentionRun], NDArray[np.float32] | None]) -> float:
        """Return the largest value over all runs in percent, so that all panels use one scale."""
        found = [array.max() for run in self.maps.runs if (array := values(run)) is not None and array.size]
        return 100 * float(max(found, default=0.01))

    def kept(self, part: PartAttention) -> NDArray[np.bool_]:
        """Return a boolean mask of the tokens from which scales are computed."""
        groups = np.array(part.tokens.groups)
        return (groups != FIRST) if self.drop_sinks else np.ones(len(groups), bool)


@dataclass(frozen=True)
class Area:
    """The area of a block in a figure; positions are in inches from its upper left corner."""

    figure: Figure
    left: float
    top: float
    width: float

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Add axes whose frame has this position and size."""
        wide, high = self.figure.get_size_inches()
        bottom = high - self.top - top - height
        axes: Any = self.figure.add_axes(((self.left + left) / wide, bottom / high, width / wide, height / high))
        axes.tick_params(labelsize=TICK, width=0.6, length=2.5, pad=2)
        for spine in axes.spines.values():
            spine.set_linewidth(0.6)
        return axes

    def text(self, left: float, top: float, text: str, **how: Any) -> None:
        """Add text with its upper left corner at this position."""
        wide, high = self.figure.get_size_inches()
        place = ((self.left + left) / wide, 1 - (self.top + top) / high)
        self.figure.text(*place, text, va="top", ha="left", parse_math=False, **how)

    def colour_bar(self, image: Any, left: float, top: float, height: float, label: str, **how: Any) -> Any:
        """Add a colour bar for ``image``, with its label on the right."""
        axes = self.axes(left, top, 0.09, height)
        bar = self.figure.colorbar(image, cax=axes, **how)
        bar.outline.set_linewidth(0.6)  # type: ignore[operator]
        axes.tick_params(labelsize=TICK, width=0.6, length=2.5, pad=2)
        axes.set_ylabel(label, fontsize=LABEL, labelpad=3)
        return bar


# Which kinds of blocks may share a row.
_BESIDE = {
    "image": ("maps",),
    "maps": ("maps",),
    "shares": ("shares", "ratios"),
    "ratios": ("ratios",),
    "curves": ("curves", "maps"),
}


@dataclass(frozen=True)
class Block:
    """One part of the figure: a panel for each run that has the data.

    Attributes:
        kind: a key of `_BESIDE`.
        title: title without its letter.
        width, height: inches, including the title; a row may widen it.
        draw: draws the block into the area under the title.
        groups: token groups that it colours, for the figure's legend.
        has_uniform: whether it draws dotted lines for uniform attention.
    """

    kind: str
    title: str
    width: float
    height: float
    draw: Callable[[Area], None]
    groups: tuple[str, ...] = ()
    has_uniform: bool = False


def rows_of(blocks: Sequence[Block]) -> list[list[Block]]:
    """Arrange blocks in rows: following blocks of a matching kind join a row while they fit its width."""
    left = list(blocks)
    rows: list[list[Block]] = []
    while left:
        row = [left.pop(0)]
        for block in list(left):
            fits = sum(other.width for other in row) + block.width <= PAGE + 1e-6
            if fits and block.kind in _BESIDE[row[0].kind]:
                row.append(block)
                left.remove(block)
        rows.append(row)
    return rows


def widths_in(row: Sequence[Block], width: float) -> list[float]:
    """Return block widths that fill a row of ``width``: an image keeps its own, the others share the rest."""
    spare = width - sum(block.width for block in row)
    flexible = sum(block.kind != "image" for block in row)
    if len(row) == 1 and row[0].width < PAGE:
        spare = 0.0  # a single narrow block is not stretched
    return [block.width + (spare / flexible if block.kind != "image" and flexible else 0) for block in row]


def display_names(runs: Sequence[AttentionRun]) -> list[str]:
    """Return a display name for each run: its label, or the shortest suffix of its path that is unique."""
    parts = [[part for part in run.name.split("/") if part] or [run.name] for run in runs]
    labels = [run.label for run in runs]

    def shortened(count: int) -> list[str]:
        return [label or "/".join(part[-count:]) for label, part in zip(labels, parts, strict=True)]

    longest = max(map(len, parts))
    for count in range(1, longest):
        names = shortened(count)
        if len(set(names)) == len(names):
            return names
    return shortened(longest)


def words(group: str) -> str:
    """Return a group's name as shown in the figure."""
    return group.replace("_", " ")


def name_places(axis: Any, labels: Sequence[str], inches: float, *, turned: bool = False) -> None:
    """Label the ticks of an axis ``inches`` long, as many as fit: all, or every second, third, ..."""
    across = axis.axis_name == "x"
    each = inches / max(len(labels), 1)
    needed = 0.115 if turned or not across else 0.06 + max((text_width(label, TICK) for label in labels), default=0)
    step = max(1, int(np.ceil(needed / each - 1e-6)))
    places = range(0, len(labels), step)
    shown = [labels[place] for place in places]
    axis.set_ticks(places, shown, fontsize=TICK, rotation=90 if turned else 0, parse_math=False)


def short_token(label: str) -> str:
    """Return a token's text, cut to fit beside a panel."""
    text = readable(label).replace("\n", " ")
    return text if len(text) <= 12 else text[:11] + "…"


def labels_width(labels: Sequence[str]) -> float:
    """Return the width in inches of the widest label."""
    return max((text_width(label, TICK) for label in labels), default=0.0)


def whole_numbers(axis: Any, most: int = 8) -> None:
    """Place ticks at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, nbins=most, min_n_ticks=1))


def panel_title(axes: Any, text: str, width: float, *, note: str = "") -> None:
    """Draw a panel's title in one line, and a note under it."""
    line = fit(text, width, PANEL)
    axes.set_title(
        f"{line}\n{fit(note, width, PANEL)}" if note else line,
        fontsize=PANEL,
        loc="left",
        pad=3,
        linespacing=1.15,
        parse_math=False,
    )
