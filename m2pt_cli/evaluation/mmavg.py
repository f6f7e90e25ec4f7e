"""MMAvg, the paper's headline number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The seven parts; MME is not one of them. POPE counts once, by the mean of its three splits.
PARTS = ("textvqa", "vsr", "snli-ve", "cifar10", "cifar100", "mnist", "pope")


def mmavg(benchmarks: Mapping[str, Mapping[str, Any]]) -> float | None:
    """The plain mean of the seven accuracies, from 0 to 100; None unless all seven are there."""
    accuracies = [benchmarks[name]["accuracy"] for name in PARTS if name in benchmarks]
    if len(accuracies) < len(PARTS) or any(accuracy is None for accuracy in accuracies):
        return None
    return 100 * sum(accuracies) / len(PARTS)
