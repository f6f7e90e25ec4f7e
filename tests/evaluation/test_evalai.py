"""EvalAI's normalisation and soft accuracy against the values of lmms-eval."""

from __future__ import annotations

import pytest

from m2pt_cli.evaluation.evalai import normalise, soft_accuracy

from .scored import assert_close, expected


def test_normalisation_agrees_with_the_reference() -> None:
    reference = expected("textvqa_expected.json")["normalise"]
    assert {answer: normalise(answer) for answer in reference} == reference


def test_soft_accuracy_agrees_with_the_reference() -> None:
    reference = expected("textvqa_expected.json")["soft_accuracy"]
    assert len(reference) >= 6
    for case in reference:
        assert_close(soft_accuracy(case["prediction"], case["answers"]), case["exact_match"])


@pytest.mark.parametrize(("matches", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_soft_accuracy_by_number_of_matches(matches: int, score: float) -> None:
    answers = ["a word"] * matches + [f"other {n}" for n in range(10 - matches)]
    assert soft_accuracy("Word", answers) == pytest.approx(score)


def test_soft_accuracy_without_answers_is_zero() -> None:
    assert soft_accuracy("x", []) == 0.0
