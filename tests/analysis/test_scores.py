"""What is drawn of a result: percent of the best possible, the same axes for all runs."""

from __future__ import annotations

from typing import Any

import pytest

from m2pt_cli.analysis.scores import Score, category_scores, common, headline_scores, radar_scores
from m2pt_cli.evaluation.benchmarks import mme, vsr
from m2pt_cli.evaluation.rows import Row


def part(accuracy: float, n: int = 50, **more: Any) -> dict[str, Any]:
    return {"accuracy": accuracy, "interval": [accuracy / 2, 1.0], "n": n, **more}


def demo(unseen: float) -> dict[str, Any]:
    return {
        **part(0.8),
        "seen": 0.9,
        "unseen": unseen,
        "intervals": {"seen": [0.85, 0.95], "unseen": [0.1, 0.7]},
        "tasks": {
            "color-word": part(0.9, seen=True),
            **{name: part(unseen, seen=False) for name in ("pope", "vsr", "mnist")},
        },
    }


def row(category: str, question: str, correct: bool) -> Row:
    said = {"answer": "yes", "prediction": "yes" if correct else "no", "parsed": "yes" if correct else "no"}
    return Row(
        id=question, image="a.png", question_id=question[:-1], question="?", category=category, correct=correct, **said
    )


def test_points_of_mme_are_percent_of_those_its_categories_can_give() -> None:
    rows = [row("existence", "a1", True), row("existence", "a2", True)]
    rows += [row("count", "b1", True), row("count", "b2", False)]
    block = {**mme.BENCHMARK.scores(rows, "official"), "n": 4}
    assert block["perception"] == 250.0
    assert headline_scores({"mme": block}) == {"mme": Score(62.5)}
    assert category_scores(block) == {"existence": Score(100.0), "count": Score(25.0)}


def test_categories_come_with_interval_and_count() -> None:
    rows = [row("left of", "a1", True), row("left of", "b1", False), row("on", "c1", True)]
    block = {**vsr.BENCHMARK.scores(rows, "official"), "n": 3}
    scores = category_scores(block)
    assert [(name, score.value, score.n) for name, score in scores.items()] == [("left of", 50.0, 2), ("on", 100.0, 1)]
    assert scores["on"].interval is not None and 0 < scores["on"].interval[0] < 50 < scores["on"].interval[1] <= 100


def test_demo_has_seen_and_unseen_and_its_unseen_families() -> None:
    assert headline_scores({"demo": demo(0.5)}) == {
        "demo seen": Score(90.0, (85.0, 95.0)),
        "demo unseen": Score(50.0, (10.0, 70.0)),
    }
    assert list(category_scores(demo(0.5))) == ["pope", "vsr", "mnist"]


def test_a_radar_has_benchmarks_if_they_are_three_else_categories() -> None:
    three = {name: part(0.5) for name in ("textvqa", "snli-ve", "mnist")}
    assert list(radar_scores([three])[0]) == ["textvqa", "snli-ve", "mnist"]
    assert list(radar_scores([{"demo": demo(0.5)}])[0]) == ["pope", "vsr", "mnist"]
    two = {"snli-ve": part(0.5), "pope": {**part(0.5), "splits": {name: {"accuracy": 0.5} for name in "abc"}}}
    assert list(radar_scores([two])[0]) == ["pope: a", "pope: b", "pope: c"]
    assert len(radar_scores([{"snli-ve": part(0.5)}])[0]) == 1


def test_axes_are_those_of_all_runs() -> None:
    whole = {name: part(0.5) for name in ("textvqa", "snli-ve", "mnist", "vsr")}
    found = radar_scores([whole, {name: whole[name] for name in ("vsr", "mnist", "textvqa")}])
    assert [list(run) for run in found] == [["textvqa", "mnist", "vsr"]] * 2


def test_a_benchmark_without_a_score_has_no_axis() -> None:
    assert headline_scores({"pope": {**part(0.5), "accuracy": None, "interval": None}}) == {}


@pytest.mark.parametrize("most", [1, 2])
def test_too_many_categories_leave_those_with_most_questions(most: int) -> None:
    run = {"rare": Score(1.0, None, 3), "common": Score(2.0, None, 90), "usual": Score(3.0, None, 40)}
    assert list(common([run], most=most)[0]) == ["common", "usual"][:most]
