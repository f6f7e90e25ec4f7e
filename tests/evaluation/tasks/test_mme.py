"""MME equals the reference scores of the authors' calculator and of lmms-eval; incomplete pairs."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.parquet_sets import png, write_parquet
from fixtures.scored import assert_close, expected, marked_rows

from m2pt_cli.errors import InputError
from m2pt_cli.evaluation.task import Prediction, TaskOptions
from m2pt_cli.evaluation.tasks.mme import BENCHMARK, COGNITION, PERCEPTION, mme_scores

_TOOLS = {"official": "official_tool", "lmms-eval": "lmms_eval"}


@pytest.mark.parametrize("protocol", ["official", "lmms-eval"])
def test_every_sub_score_agrees_with_the_reference(protocol: str) -> None:
    reference = expected("mme_expected.json")[_TOOLS[protocol]]
    scores = BENCHMARK.scores(marked_rows(BENCHMARK, "mme_predictions.jsonl", protocol), protocol)
    assert_close(scores["perception"], reference["mme_perception_score"])
    assert_close(scores["cognition"], reference["mme_cognition_score"])
    assert_close(scores["total"], reference["total"])
    assert set(scores["categories"]) == {*PERCEPTION, *COGNITION} == set(reference["categories"])
    for name, part in reference["categories"].items():
        for key in ("score", "acc", "acc_plus"):
            if key in part:
                assert_close(scores["categories"][name][key], part[key])
    assert scores["unparsed"] == reference["parsed"]["other"]


@pytest.mark.parametrize("protocol", ["official", "lmms-eval"])
def test_every_answer_is_read_as_the_tool_reads_it(protocol: str) -> None:
    key = {"official": "official", "lmms-eval": "lmms_eval"}[protocol]
    rows = marked_rows(BENCHMARK, "mme_predictions.jsonl", protocol)
    parses = expected("mme_expected.json")["all_parses"]
    assert {row.prediction for row in rows} == set(parses)
    assert {row.prediction: row.parsed or "other" for row in rows} == {a: by[key] for a, by in parses.items()}


def test_incomplete_pairs_count_in_accuracy_alone() -> None:
    rows = marked_rows(BENCHMARK, "mme_predictions.jsonl", "lmms-eval")[:3]
    scores = mme_scores(rows)
    part = scores["categories"]["existence"]
    right = [bool(row.correct) for row in rows]
    assert_close(part["acc"], 100 * sum(right) / 3)
    assert_close(part["acc_plus"], 100.0 * all(right[:2]))
    assert scores["incomplete"] == 1
    assert scores["cognition"] is None and scores["total"] == scores["perception"] == part["score"]


def test_one_question_has_no_score() -> None:
    scores = mme_scores(marked_rows(BENCHMARK, "mme_predictions.jsonl", "official")[:1])
    assert scores["categories"]["existence"]["score"] is None
    assert scores["perception"] is scores["cognition"] is scores["total"] is None


def test_items_of_the_true_columns(tmp_path: Path) -> None:
    question = "Is there a dog in this image? Please answer yes or no."
    rows = [
        {
            "question_id": "existence/0001.png",
            "image": png((9, 9, 9)),
            "question": question,
            "answer": "Yes",
            "category": "existence",
        },
        {
            "question_id": "existence/0001.png",
            "image": png((9, 9, 9)),
            "question": question,
            "answer": "No",
            "category": "existence",
        },
        {
            "question_id": "OCR/0002.jpg",
            "image": png((0, 200, 0)),
            "question": question,
            "answer": "No",
            "category": "OCR",
        },
    ]
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", rows, images=("image",))
    items = BENCHMARK.items(TaskOptions(source=str(tmp_path)))
    assert [item.id for item in items] == ["existence/0001.png#0", "existence/0001.png#1", "OCR/0002.jpg#0"]
    assert items[0].question == ("Is there a dog in this image?\nAnswer the question using a single word or phrase.")
    assert items[0].image is items[1].image and items[0].image is not items[2].image
    assert items[2].image.open().getpixel((0, 0)) == (0, 200, 0)
    stored = BENCHMARK.items(TaskOptions(source=str(tmp_path), wording="stored", limit=1))
    assert [item.question for item in stored] == [question]


def test_rows_of_another_benchmark_are_refused() -> None:
    with pytest.raises(InputError, match="no row has a category of mme"):
        BENCHMARK.scores([Prediction("1#0", "1", "adversarial", None, "Is it?", "yes", "yes")], "official")


def test_the_data_of_another_benchmark_are_refused(tmp_path: Path) -> None:
    row = {"question_id": "1", "image": png((9, 9, 9)), "question": "Is it?", "answer": "yes", "category": "random"}
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [row], images=("image",))
    with pytest.raises(InputError, match="row 1: category is 'random', one of existence"):
        BENCHMARK.items(TaskOptions(source=str(tmp_path)))
