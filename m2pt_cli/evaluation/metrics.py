"""Accuracies, confidence intervals, McNemar's test, and the paper's mean over benchmarks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from m2pt_cli.evaluation.task import Prediction, answered

# The 97.5 % quantile of the standard normal distribution: 95 % intervals.
_Z = 1.959963984540054


def wilson(successes: float, n: int) -> list[float] | None:
    """Return the 95 % Wilson score interval of a proportion as ``[low, high]``; None for n = 0.

    ``successes`` may be fractional (soft accuracies); the interval is then approximate and slightly too wide.
    """
    if n == 0:
        return None
    proportion = successes / n
    centre = (proportion + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(proportion * (1 - proportion) / n + _Z**2 / (4 * n**2))
    # Rounding must not move the ends off 0 and 1.
    low = 0.0 if successes <= 0 else max(0.0, centre - half)
    high = 1.0 if successes >= n else min(1.0, centre + half)
    return [low, high]


def mean(values: Iterable[float]) -> float | None:
    """Return the arithmetic mean; None if there are no values."""
    numbers = list(values)
    return math.fsum(numbers) / len(numbers) if numbers else None


def ratio(part: float, whole: float) -> float:
    """Return ``part / whole``; 0 if the whole is 0 (as scikit-learn defines precision without predictions)."""
    return part / whole if whole else 0.0


@dataclass(frozen=True)
class BinaryCounts:
    """The confusion matrix of yes/no questions; "yes" is the positive class."""

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int

    @classmethod
    def of(cls, pairs: Iterable[tuple[bool, bool]]) -> BinaryCounts:
        """Count pairs of (reference is yes, prediction is yes)."""
        counts = {(True, True): 0, (False, True): 0, (False, False): 0, (True, False): 0}
        for reference, prediction in pairs:
            counts[reference, prediction] += 1
        return cls(counts[True, True], counts[False, True], counts[False, False], counts[True, False])

    @property
    def n(self) -> int:
        return self.true_positive + self.false_positive + self.true_negative + self.false_negative

    @property
    def accuracy(self) -> float:
        return ratio(self.true_positive + self.true_negative, self.n)

    @property
    def precision(self) -> float:
        return ratio(self.true_positive, self.true_positive + self.false_positive)

    @property
    def recall(self) -> float:
        return ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def f1(self) -> float:
        return ratio(2 * self.precision * self.recall, self.precision + self.recall)

    @property
    def yes_ratio(self) -> float:
        """The fraction of *predictions* that are yes."""
        return ratio(self.true_positive + self.false_positive, self.n)

    def to_dict(self) -> dict[str, float]:
        """Return ``{"accuracy", "precision", "recall", "f1", "yes_ratio"}`` as fractions."""
        return {name: getattr(self, name) for name in ("accuracy", "precision", "recall", "f1", "yes_ratio")}


@dataclass(frozen=True)
class McNemar:
    """McNemar's test of two runs on the same questions: how many each alone got right, and the p-value.

    ``p_value`` is the exact two-sided binomial test of ``only_first`` out of ``only_first + only_second`` at 1/2.
    """

    n: int
    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Compute McNemar's exact test on paired right/wrong answers (McNemar 1947).

    Raises:
        ValueError: the two lists differ in length.
    """
    pairs = list(zip(first, second, strict=True))
    only_first = sum(a and not b for a, b in pairs)
    only_second = sum(b and not a for a, b in pairs)
    return McNemar(
        len(pairs), only_first, only_second, _two_sided_binomial(min(only_first, only_second), only_first + only_second)
    )


def _two_sided_binomial(successes: int, n: int) -> float:
    """Return 2 * P(X <= successes) for X ~ Binomial(n, 1/2), at most 1; in logarithms, because n may be thousands."""
    if n == 0:
        return 1.0
    log_half = n * math.log(2)
    tail = math.fsum(
        math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - log_half)
        for k in range(successes + 1)
    )
    return min(1.0, 2 * tail)


def accuracy(rows: Sequence[Prediction]) -> dict[str, Any]:
    """Return ``{"accuracy", "interval", "n"}`` over the answered questions; soft scores count as fractions."""
    scores = [float(row.correct or 0) for row in answered(rows)]
    return {"accuracy": mean(scores), "interval": wilson(sum(scores), len(scores)), "n": len(scores)}


def accuracy_by_category(rows: Sequence[Prediction], key: str | None) -> dict[str, Any]:
    """Return accuracy, interval and number of unparsed answers; under ``key``, if given, the accuracy per category."""
    good = answered(rows)
    total = accuracy(rows)
    scores: dict[str, Any] = {
        "accuracy": total["accuracy"],
        "interval": total["interval"],
        "unparsed": sum(row.parsed is None for row in good),
    }
    if key is not None:
        names = sorted({row.category or "" for row in good})
        scores[key] = {name: accuracy([row for row in good if (row.category or "") == name]) for name in names}
    return scores


# The seven benchmarks of the paper's mean, which leaves MME out. POPE counts once, by the mean of its three splits.
PARTS = ("textvqa", "vsr", "snli-ve", "cifar10", "cifar100", "mnist", "pope")


def mmavg(benchmarks: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Return the mean of the seven accuracies of `PARTS`, 0 to 100; None unless all seven are present."""
    accuracies = [benchmarks[name]["accuracy"] for name in PARTS if name in benchmarks]
    if len(accuracies) < len(PARTS) or any(accuracy is None for accuracy in accuracies):
        return None
    return 100 * sum(accuracies) / len(PARTS)
