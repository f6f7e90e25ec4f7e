"""Accuracy over rows, with its interval, whole and by category."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from m2pt_cli.evaluation.rows import Row, answered
from m2pt_cli.evaluation.statistics import mean, wilson


def accuracy(rows: Sequence[Row]) -> dict[str, Any]:
    """``{"accuracy", "interval", "n"}`` of the answered rows; soft marks count as shares."""
    marks = [float(row.correct or 0) for row in answered(rows)]
    return {"accuracy": mean(marks), "interval": wilson(sum(marks), len(marks)), "n": len(marks)}


def accuracy_by_category(rows: Sequence[Row], key: str | None) -> dict[str, Any]:
    """Accuracy of all rows, the number that could not be read, and under ``key`` the accuracy of each category."""
    good = answered(rows)
    total = accuracy(rows)
    block = {
        "accuracy": total["accuracy"],
        "interval": total["interval"],
        "unparsed": sum(row.parsed is None for row in good),
    }
    if key is not None:
        names = sorted({row.category or "" for row in good})
        block[key] = {name: accuracy([row for row in good if (row.category or "") == name]) for name in names}
    return block
