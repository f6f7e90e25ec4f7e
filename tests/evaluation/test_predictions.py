"""Predictions made elsewhere: three file formats give the same scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fixtures.scored import SCORING, assert_close, expected

from m2pt_cli.errors import InputError
from m2pt_cli.evaluation.predictions import read_predictions
from m2pt_cli.evaluation.task import Prediction
from m2pt_cli.evaluation.tasks.mme import BENCHMARK as MME


def _reference() -> list[dict[str, Any]]:
    text = (SCORING / "mme_predictions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _with_record(number: int, row: dict[str, Any]) -> dict[str, Any]:
    """A sample as lmms-eval wrote it up to version 0.2: the question's record is in ``doc``."""
    doc = {key: row[key] for key in ("question_id", "category", "question", "answer")}
    return {
        "doc_id": number,
        "doc": doc,
        "target": row["answer"],
        "resps": [[row["prediction"]]],
        "filtered_resps": [row["prediction"]],
    }


def _without_record(number: int, row: dict[str, Any]) -> dict[str, Any]:
    """A sample as newer versions write it: id and category are in the metric alone."""
    metric = {"question_id": row["question_id"], "category": row["category"], "score": 0.0}
    return {
        "doc_id": number,
        "target": row["answer"],
        "filtered_resps": [row["prediction"]],
        "doc_hash": "0",
        "input": row["question"],
        "mme_perception_score": metric,
    }


def _score(rows: list[Prediction]) -> dict[str, Any]:
    return MME.scores([row.marked(MME.mark(row, "lmms-eval")) for row in rows], "lmms-eval")


@pytest.mark.parametrize("kind", ["rows", "with record", "without record", "one object"])
def test_every_kind_of_file_gives_the_same_scores(tmp_path: Path, kind: str) -> None:
    rows = _reference()
    make = _without_record if kind == "without record" else _with_record
    records = rows if kind == "rows" else [make(number, row) for number, row in enumerate(rows)]
    file = tmp_path / "answers.jsonl"
    if kind == "one object":
        file.write_text(json.dumps({"args": {}, "logs": records}), encoding="utf-8")
    else:
        file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    scores = _score(read_predictions(file))
    reference = expected("mme_expected.json")["lmms_eval"]
    assert_close(scores["total"], reference["total"])
    for name, part in reference["categories"].items():
        assert_close(scores["categories"][name]["acc_plus"], part["acc_plus"])


def test_lists_of_answers_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    doc = {"question_id": 34602, "question": "what?", "answers": ["nokia", "dakota"]}
    file.write_text(json.dumps({"doc_id": 0, "doc": doc, "target": "nokia", "resps": [["Nokia"]]}) + "\n")
    (row,) = read_predictions(file)
    assert (row.id, row.answer, row.prediction) == ("34602#0", ["nokia", "dakota"], "Nokia")


def test_a_sample_without_an_answer_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    good = _with_record(0, _reference()[0])
    file.write_text(json.dumps(good) + "\n" + json.dumps({**good, "filtered_resps": [1]}) + "\n")
    with pytest.raises(InputError, match="sample 2 has no text among its responses"):
        read_predictions(file)
    file.write_text(json.dumps(good) + "\n" + json.dumps({"doc_id": 1}) + "\n")
    with pytest.raises(InputError, match="sample 2 has no answer"):
        read_predictions(file)


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be read"):
        read_predictions(tmp_path / "none.jsonl")
