"""Intervals, two-class counts and McNemar's test against independently computed values."""

from __future__ import annotations

import math

import pytest

from m2pt_cli.evaluation.metrics import BinaryCounts, mcnemar, mean, wilson


def test_wilson_matches_published_values() -> None:
    # Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for successes, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        interval = wilson(successes, n)
        assert interval == pytest.approx([low, high], abs=5e-5)


def test_wilson_of_nothing_and_of_everything() -> None:
    assert wilson(0, 0) is None
    interval = wilson(10, 10)
    assert interval is not None and interval[1] == 1.0 and 0.7 < interval[0] < 0.73
    none = wilson(0, 12)
    assert none is not None and none[0] == 0.0


def test_mean_of_nothing_is_null() -> None:
    assert mean([]) is None
    assert mean([0.25, 0.75]) == 0.5


def test_binary_counts() -> None:
    pairs = [(True, True)] * 6 + [(False, True)] * 2 + [(False, False)] * 5 + [(True, False)] * 3
    counts = BinaryCounts.of(pairs)
    assert (counts.true_positive, counts.false_positive, counts.true_negative, counts.false_negative) == (6, 2, 5, 3)
    assert counts.accuracy == 11 / 16
    assert counts.precision == 6 / 8
    assert counts.recall == 6 / 9
    assert counts.f1 == pytest.approx(2 * 6 / (2 * 6 + 2 + 3))
    assert counts.yes_ratio == 8 / 16


def test_binary_counts_without_a_predicted_yes() -> None:
    counts = BinaryCounts.of([(True, False), (False, False)])
    assert (counts.precision, counts.recall, counts.f1, counts.yes_ratio) == (0.0, 0.0, 0.0, 0.0)


def test_mcnemar_is_the_exact_binomial_test() -> None:
    first = [True] * 10 + [False] * 3 + [True] * 40 + [False] * 7
    second = [False] * 10 + [True] * 3 + [True] * 40 + [False] * 7
    result = mcnemar(first, second)
    exact = 2 * sum(math.comb(13, k) for k in range(4)) / 2**13
    assert (result.n, result.only_first, result.only_second) == (60, 10, 3)
    assert result.p_value == pytest.approx(exact, rel=1e-12)


def test_mcnemar_of_equal_and_of_large_runs() -> None:
    assert mcnemar([True, False], [True, False]).p_value == 1.0
    large = mcnemar([True] * 2600 + [False] * 2400, [False] * 2600 + [True] * 2400)
    # Normal approximation with continuity correction: z = (200 - 1) / sqrt(5000).
    z = (2600 - 2400 - 1) / math.sqrt(5000)
    assert large.p_value == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-2)


def test_mcnemar_needs_the_same_questions() -> None:
    with pytest.raises(ValueError):
        mcnemar([True], [True, False])
