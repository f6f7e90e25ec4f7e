"""What a figure of scores shows: the numbers of ``results.json`` as percent of the best possible."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Fewer axes make no polygon.
FEWEST_AXES = 3
# More do not stay readable.
MOST_CATEGORIES = 30
# What a category of MME can reach: accuracy and acc+, in percent each.
_MOST_POINTS = 200
_PARTS = ("relations", "classes", "categories")

Blocks = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Score:
    """One number of one run.

    Attributes:
        value: percent of the best possible: right answers, or points of MME.
        interval: 95 % interval in percent, where the block has one.
        n: questions behind it; 0 where the block does not say.
    """

    value: float
    interval: tuple[float, float] | None = None
    n: int = 0


def headline_scores(blocks: Blocks) -> dict[str, Score]:
    """One score for each benchmark, two (seen, unseen) for ``demo``.

    Args:
        blocks: ``benchmarks`` of ``results.json``.
    """
    found: dict[str, Score | None] = {}
    for name, block in blocks.items():
        if "seen" in block:
            for kind in ("seen", "unseen"):
                found[f"{name} {kind}"] = _share(block[kind], block["intervals"][kind])
        elif "perception" in block:
            points = [part["score"] for part in block["categories"].values() if part["score"] is not None]
            found[name] = Score(100 * sum(points) / (_MOST_POINTS * len(points))) if points else None
        else:
            found[name] = _share(block["accuracy"], block.get("interval"), block["n"])
    return {name: score for name, score in found.items() if score is not None}


def category_scores(block: Mapping[str, Any]) -> dict[str, Score]:
    """The parts of one benchmark, in its own order; empty where it has none.

    Args:
        block: its block in ``results.json``. Of ``demo``, the parts are the families that training never shows: the
            others are many, and tuning makes them easy.
    """
    found: dict[str, Score | None] = {}
    if "tasks" in block:
        tasks = [(name, part) for name, part in block["tasks"].items() if not part["seen"]]
        found = {name: _share(part["accuracy"], part["interval"], part["n"]) for name, part in tasks}
    elif "perception" in block:
        for name, part in block["categories"].items():
            found[name] = None if part["score"] is None else Score(100 * part["score"] / _MOST_POINTS)
    elif "splits" in block:
        found = {name: _share(part["accuracy"]) for name, part in block["splits"].items()}
    else:
        parts: Mapping[str, Any] = next((block[key] for key in _PARTS if block.get(key)), {})
        found = {name: _share(part["accuracy"], part["interval"], part["n"]) for name, part in parts.items()}
    return {name: score for name, score in found.items() if score is not None}


def radar_scores(runs: Sequence[Blocks]) -> list[dict[str, Score]]:
    """The axes of figure 1 for each run: benchmarks if there are enough of them, else their categories.

    The axes are the same, in the same order, for all runs: those that every run has a score of.
    """
    by_benchmark = common([headline_scores(blocks) for blocks in runs])
    if len(by_benchmark[0]) >= FEWEST_AXES:
        return by_benchmark
    by_category = common([_all_categories(blocks) for blocks in runs])
    return by_category if len(by_category[0]) >= FEWEST_AXES else by_benchmark


def common(runs: Sequence[Mapping[str, Score]], *, most: int = MOST_CATEGORIES) -> list[dict[str, Score]]:
    """The scores that all runs have; of more than ``most``, those with the most questions."""
    names = [name for name in runs[0] if all(name in run for run in runs)]
    if len(names) > most:
        kept = set(sorted(names, key=lambda name: -runs[0][name].n)[:most])
        names = [name for name in names if name in kept]
    return [{name: run[name] for name in names} for run in runs]


def _all_categories(blocks: Blocks) -> dict[str, Score]:
    label: Callable[[str, str], str] = (lambda bench, name: name) if len(blocks) == 1 else "{}: {}".format
    return {
        label(bench, name): score for bench, block in blocks.items() for name, score in category_scores(block).items()
    }


def _share(share: float | None, interval: Sequence[float] | None = None, n: int = 0) -> Score | None:
    if share is None:
        return None
    return Score(100 * share, None if interval is None else (100 * interval[0], 100 * interval[1]), n)
