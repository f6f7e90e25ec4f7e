"""The columns of table 1: the paper's benchmarks on a 7B base, the demo families that imitate them on nano."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from m2pt_cli.demo.questions import FAMILIES


@dataclass(frozen=True)
class Columns:
    """The scores that are reported for a base.

    Attributes:
        benchmarks: columns of table 1 and axes of figure 1.
        headline: the mean on which the paper's claims rest.
        others: further means.
        tested: the scores on which methods are compared seed by seed.
        explained: the meaning of each group, for the reader.
        points: columns in points; all others are fractions.
    """

    benchmarks: tuple[str, ...]
    headline: str
    others: tuple[str, ...]
    tested: tuple[str, ...]
    explained: dict[str, str]
    points: frozenset[str] = frozenset()

    def best(self, column: str) -> float:
        """Return the highest possible score: MME's fourteen categories have 200 points each."""
        return 2800.0 if column == "mme" else 100.0 if column in self.points else 1.0

    def text(self, column: str, value: float, error: float | None = None, *, signed: bool = False) -> str:
        """Format a score for tables, in percent or points."""
        factor = 1.0 if column in self.points else 100.0
        shown = f"{factor * value:+.1f}" if signed else f"{factor * value:.1f}"
        return shown + ("" if error is None else f" ± {factor * error:.1f}")


DEMO = Columns(
    benchmarks=tuple(family.name for family in FAMILIES.values() if family.imitates),
    headline="unseen",
    others=("unseen, clean", "unseen, shifted", "seen", "seen, clean", "seen, shifted"),
    tested=("unseen", "seen"),
    explained={
        "unseen": "the 15 task families that training never shows: the zero-shot score",
        "unseen, clean": "those of them drawn as in the base's pre-training",
        "unseen, shifted": "those under a visual shift that pre-training never showed (outlines, noise, blur)",
        "seen": "the 32 families that training shows, about new images",
        "seen, clean": "those of them without a shift",
        "seen, shifted": "those with one (outlines, stripes, tint, noise)",
    },
)
PAPER = Columns(
    benchmarks=("mme", "textvqa", "vsr", "snli-ve", "cifar10", "cifar100", "mnist", "pope"),
    headline="mmavg",
    others=(),
    tested=("mmavg",),
    explained={"mmavg": "the mean of the seven benchmarks but MME, 0 to 100", "mme": "points"},
    points=frozenset({"mme", "mmavg"}),
)


def columns_for(scores: Iterable[str]) -> Columns:
    """Return the columns for records with these scores."""
    return DEMO if "unseen" in set(scores) else PAPER
