"""The demo benchmark: fixed questions, scores by task, guessing accuracy, and scoring as in MME and POPE."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from m2pt_cli.demo.dataset import demo_eval_questions
from m2pt_cli.demo.questions import FAMILIES
from m2pt_cli.errors import InputError
from m2pt_cli.evaluation.task import Example, Prediction, Score, TaskOptions
from m2pt_cli.evaluation.tasks.demo import BENCHMARK


@pytest.fixture(scope="module")
def items() -> list[Example]:
    return BENCHMARK.items(TaskOptions())


def _marked(rows: list[Prediction]) -> list[Prediction]:
    return [row.marked(BENCHMARK.mark(row, "official")) for row in rows]


def test_two_thousand_questions_of_each_kind(items: list[Example]) -> None:
    kinds = Counter(FAMILIES[str(item.category)].seen for item in items)
    assert kinds == {True: 2000, False: 2000} and BENCHMARK.size == 4000
    assert len({item.id for item in items}) == 4000
    assert items == BENCHMARK.items(TaskOptions(limit=4000)) == BENCHMARK.items(TaskOptions(limit=5000))


def test_a_limit_keeps_every_family_and_whole_pairs(items: list[Example]) -> None:
    first = BENCHMARK.items(TaskOptions(limit=len(FAMILIES) + 2))
    assert {item.category for item in first} == {item.category for item in items[: len(FAMILIES) + 2]} == set(FAMILIES)
    by_id = {item.id: item for item in items}
    assert all(by_id[item.id] == item for item in first)
    assert first[:16] == BENCHMARK.items(TaskOptions(limit=16))  # a larger limit goes on where a smaller one ended
    pairs = Counter(item.question_id for item in items if FAMILIES[str(item.category)].paired)
    assert set(pairs.values()) == {2}


@pytest.mark.parametrize(("limit", "least"), [(2, 0), (4, 1), (16, 4), (40, 11)])
def test_a_small_limit_asks_families_of_both_kinds(limit: int, least: int) -> None:
    kinds = Counter(FAMILIES[str(item.category)].seen for item in BENCHMARK.items(TaskOptions(limit=limit)))
    assert kinds[False] >= least and kinds[True] >= kinds[False]


def test_the_reference_answers_are_all_right(items: list[Example]) -> None:
    scores = BENCHMARK.scores(_marked([Prediction.of(item, str(item.answer)) for item in items]), "official")
    assert scores["accuracy"] == scores["seen"] == scores["unseen"] == 1.0 and scores["unparsed"] == 0
    assert set(scores["tasks"]) == set(FAMILIES)
    assert sum(task["n"] for task in scores["tasks"].values()) == 4000
    assert scores["mme"]["total"] == 400.0 and set(scores["mme"]["categories"]) == {"count", "position"}
    assert scores["pope"]["f1"] == 1.0 and set(scores["pope"]["splits"]) == {"random", "popular", "adversarial"}


def test_saying_yes_to_everything_is_no_better_than_the_majority(items: list[Example]) -> None:
    scores = BENCHMARK.scores(_marked([Prediction.of(item, "Yes.") for item in items]), "official")
    for name, task in scores["tasks"].items():
        assert task["accuracy"] <= task["majority"], name
        assert task["seen"] is FAMILIES[name].seen
        if FAMILIES[name].format not in ("yes/no", "three-way"):
            assert task["accuracy"] == 0
    assert scores["seen"] < scores["majority"]["seen"] < 0.5 and scores["unseen"] < scores["majority"]["unseen"] < 0.5
    # One question of each pair is right, no pair is.
    assert scores["mme"]["categories"]["count"] == {"score": 50.0, "acc": 50.0, "acc_plus": 0.0}
    assert scores["pope"]["recall"] == 1.0 and scores["pope"]["yes_ratio"] == 1.0


def test_absent_things_are_scored_by_how_they_were_chosen(items: list[Example]) -> None:
    """Wrong on the adversarial ones alone: two splits whole, and each with about as many present things as absent."""
    kinds = {question.question_id: question.absence for question in demo_eval_questions() if question.family == "pope"}
    asked = [item for item in items if item.category == "pope"]
    absent = [item for item in asked if kinds[item.question_id]]
    assert {item.answer for item in absent} == {"no"} and len(absent) == len(asked) // 2
    said = {item.id: "yes" if kinds[item.question_id] == "adversarial" else str(item.answer) for item in asked}
    pope = BENCHMARK.scores(_marked([Prediction.of(item, said[item.id]) for item in asked]), "official")["pope"]
    assert pope["splits"]["random"]["accuracy"] == pope["splits"]["popular"]["accuracy"] == 1.0
    assert pope["splits"]["adversarial"]["accuracy"] < 0.65 and pope["splits"]["adversarial"]["recall"] == 1.0
    assert all(0.35 < pope["splits"][split]["yes_ratio"] < 0.65 for split in ("random", "popular"))


def test_the_accuracy_is_that_of_the_answered_questions(items: list[Example]) -> None:
    rows = [Prediction.of(item, str(item.answer) if number % 2 else "?") for number, item in enumerate(items[:200])]
    rows[0] = dataclasses.replace(rows[0], prediction=None, error="broken")
    scores = BENCHMARK.scores(_marked(rows), "official")
    assert scores["accuracy"] == pytest.approx(100 / 199)
    low, high = scores["intervals"]["accuracy"]
    assert low < 100 / 199 < high


def test_another_benchmarks_rows_are_refused() -> None:
    row = Prediction("1#0", "1", "existence", None, "?", "yes", "yes")
    with pytest.raises(InputError, match="'existence', which demo does not have"):
        BENCHMARK.mark(row, "official")
    assert Score("x", True).correct
