"""TextVQA: the data set's real columns, OCR tokens, soft accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fixtures.parquet_sets import png, write_parquet
from fixtures.scored import expected

from m2pt_cli.errors import InputError
from m2pt_cli.evaluation.task import Prediction, TaskOptions
from m2pt_cli.evaluation.tasks.textvqa import BENCHMARK


def test_items_of_the_true_columns(tmp_path: Path) -> None:
    row = {
        "image_id": "003a8ae2ef43b901",
        "question_id": 34602,
        "question": "what is the brand of this camera?",
        "image": png((1, 2, 3)),
        "answers": ["dakota"] * 10,
        "ocr_tokens": ["DAKOTA", "DIGITAL"],
    }
    write_parquet(
        tmp_path / "data" / "validation-00000-of-00001.parquet", [row, {**row, "question_id": 34603}], images=("image",)
    )
    items = BENCHMARK.items(TaskOptions(source=str(tmp_path)))
    assert [item.id for item in items] == ["34602#0", "34603#0"]
    assert items[0].answer == ["dakota"] * 10 and items[0].image is items[1].image
    suffix = "\nAnswer the question using a single word or phrase."
    assert items[0].question == "what is the brand of this camera?" + suffix
    with_ocr = BENCHMARK.items(TaskOptions(source=str(tmp_path), ocr=True))
    assert with_ocr[0].question == ("what is the brand of this camera?\nReference OCR token: DAKOTA, DIGITAL" + suffix)


def test_the_score_is_the_mean_soft_accuracy() -> None:
    cases = expected("textvqa_expected.json")["soft_accuracy"]
    rows = [
        Prediction(f"{n}#0", str(n), None, None, "?", case["answers"], case["prediction"])
        for n, case in enumerate(cases)
    ]
    marked = [row.marked(BENCHMARK.mark(row, "official")) for row in rows]
    scores = BENCHMARK.scores(marked, "official")
    assert scores["accuracy"] == pytest.approx(sum(case["exact_match"] for case in cases) / len(cases), abs=1e-6)


@pytest.mark.parametrize(
    ("column", "value"), [("answers", None), ("answers", []), ("answers", ["x"] * 9), ("ocr_tokens", None)]
)
def test_a_row_without_answers_or_tokens_is_refused_by_name(tmp_path: Path, column: str, value: Any) -> None:
    row = {"image_id": "a", "question_id": 1, "question": "what?", "answers": ["x"] * 10, "ocr_tokens": ["X"]}
    rows = [{**one, "image": png((1, 2, 3))} for one in (row, {**row, column: value})]
    write_parquet(tmp_path / "validation-0.parquet", rows, images=("image",))
    with pytest.raises(InputError, match=rf"row 2: {column} is .*, a list of .*texts.* was expected"):
        BENCHMARK.items(TaskOptions(source=str(tmp_path), ocr=True))


def test_the_test_split_has_no_references(tmp_path: Path) -> None:
    row = {"image_id": "a", "question_id": 1, "question": "what?", "answers": [""] * 10, "image": png((1, 2, 3))}
    write_parquet(tmp_path / "validation-0.parquet", [row], images=("image",))
    with pytest.raises(InputError, match=r"row 1: answers is .*10 answers of which none is blank \(10 are\)"):
        BENCHMARK.items(TaskOptions(source=str(tmp_path)))
