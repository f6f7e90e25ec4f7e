"""What the panels of an attention figure share: scales, colours, and how groups and places are named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2pt_cli.analysis.attention_maps import AttentionMaps, AttentionRun, PartAttention
from m2pt_cli.analysis.token_groups import ANSWER, CLASS, FIRST, IMAGE, QUESTION, SYSTEM, TEXTUAL, VISUAL

# Colour, marker and line of every group; Okabe and Ito's colours.
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
MAP = "viridis"
LABEL, TITLE, SMALL = 9.5, 10.5, 8.0
# As many tokens can be named under a curve, and as many rows or columns of a map.
MOST_NAMED, MOST_TICKS = 64, 32
MOST_CURVES = 4


@dataclass(frozen=True)
class Scene:
    """What all panels of a figure share."""

    maps: AttentionMaps
    drop_sinks: bool

    def top(self, values: Callable[[AttentionRun], NDArray[np.float32] | None]) -> float:
        """The largest value over all runs, in percent: one scale for what is compared."""
        found = [array.max() for run in self.maps.runs if (array := values(run)) is not None and array.size]
        return 100 * float(max(found, default=0.01))

    def kept(self, part: PartAttention) -> NDArray[np.bool_]:
        """The tokens that scales are made for."""
        groups = np.array(part.tokens.groups)
        return (groups != FIRST) if self.drop_sinks else np.ones(len(groups), bool)


def plain(text: str) -> str:
    """Text that matplotlib takes as it is: a dollar begins no formula."""
    return readable(text).replace("$", r"\$")


def readable(text: str) -> str:
    """Text without control characters: a font draws them as boxes, and an SVG that holds them can't be parsed."""
    return "".join(character if character.isprintable() or character == "\n" else " " for character in text)


def words(group: str) -> str:
    return group.replace("_", " ")


def counted(group: str, count: int) -> str:
    return words(group) if count == 1 else f"{words(group)} ({count})"


def legend(cell: Any, axes: Any, *, columns: int) -> None:
    """Under the panel, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    cell.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=SMALL, frameon=False)


def name_places(axis: Any, labels: Sequence[str]) -> None:
    """Every place by its label, or some by their number where they are too many."""
    if len(labels) <= MOST_TICKS:
        rotation = 90 if axis.axis_name == "x" and len(labels) > 12 else 0
        axis.set_ticks(range(len(labels)), [plain(label) for label in labels], fontsize=SMALL, rotation=rotation)
    else:
        whole_numbers(axis)


def whole_numbers(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, nbins=12))
