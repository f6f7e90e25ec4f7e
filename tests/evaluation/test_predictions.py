"""Predictions made elsewhere: three file formats give the same scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fixtures.scored import SCORING, assert_close, expected

from m2pt_cli.errors import InputError
from m2pt_cli.evaluation.events import Notice, Progress
from m2pt_cli.evaluation.predictions import read_predictions, rescore
from m2pt_cli.evaluation.task import Prediction
from m2pt_cli.evaluation.tasks import find_tasks
from m2pt_cli.evaluation.tasks.mme import BENCHMARK as MME
from m2pt_cli.evaluation.tasks.own_file import OwnBenchmark
from m2pt_cli.settings import EvalSettings


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
    scores = _score(list(read_predictions(file).values()))
    reference = expected("mme_expected.json")["lmms_eval"]
    assert_close(scores["total"], reference["total"])
    for name, part in reference["categories"].items():
        assert_close(scores["categories"][name]["acc_plus"], part["acc_plus"])


def test_lists_of_answers_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    doc = {"question_id": 34602, "question": "what?", "answers": ["nokia", "dakota"]}
    file.write_text(json.dumps({"doc_id": 0, "doc": doc, "target": "nokia", "resps": [["Nokia"]]}) + "\n")
    (row,) = read_predictions(file).values()
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


def _rescored(
    file: Path, bench: str, records: list[dict[str, Any]], *, limit: int | None = None
) -> tuple[dict[str, Any], list[str]]:
    """The scores of a file of records, and the warnings."""
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    task = OwnBenchmark(file.parent / "own.jsonl") if bench == "own" else find_tasks([bench])[0]
    events: list[Notice | Progress] = []
    settings = EvalSettings(bench=(bench,), predictions=file, limit=limit)
    (run,) = rescore(settings, task, events=events.append).runs
    return run.benchmarks[task.name], [event.text for event in events if isinstance(event, Notice)]


# What lmms-eval writes for TextVQA: the submission and the score hold what the model said.
_LOG = {
    "doc_id": 0,
    "target": "htc",
    "input": "brand?",
    "filtered_resps": ["nokia"],
    "exact_match": 0.0,
    "submission": {"question_id": 1, "answer": "nokia", "answers": ["nokia"] * 10, "ground_truth": "nokia"},
}


def test_the_models_own_words_are_no_reference(tmp_path: Path) -> None:
    second = {**_LOG, "doc_id": 1, "filtered_resps": ["HTC"], "submission": {"question_id": 2, "answer": "htc"}}
    scores, _ = _rescored(tmp_path / "log.jsonl", "own", [_LOG, second])
    assert scores["accuracy"] == 0.5 and scores["n"] == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target": "answer"}, "sample 1 has the target 'answer', the name of a column"),
        ({"target": "answers"}, "the name of a column"),
        ({"target": "label"}, "the name of a column"),
        ({"target": "{{answer}}"}, "the name of a column"),
        ({"target": "brand", "doc": {"question": "?", "brand": None}}, "the name of a column"),
        ({"target": None}, "sample 1 has no reference answer"),
        ({"target": " "}, "has no reference answer"),
        ({"target": []}, "has no reference answer"),
        ({"target": {"submission": "nokia"}}, "a reference that is no text"),
        ({"target": 1, "doc": {"choices": ["htc", "nokia"]}}, "the number of a choice"),
    ],
)
def test_a_target_that_is_no_reference_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        _rescored(tmp_path / "log.jsonl", "own", [{**_LOG, **change}])
    assert '"doc" and "target" alone' in str(caught.value.hint)


def test_a_word_that_may_name_a_column_is_a_reference_among_others(tmp_path: Path) -> None:
    words = ("Target", "target", "nokia")
    records = [
        {"doc_id": number, "target": word, "input": "brand?", "filtered_resps": [word.upper()]}
        for number, word in enumerate(words)
    ]
    assert _rescored(tmp_path / "log.jsonl", "own", records)[0]["accuracy"] == 1.0


def test_a_log_of_textvqa_needs_ten_references(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    for target in ("htc", ["htc"] * 3):
        with pytest.raises(InputError, match=r"sample 1: answer is .*a list of 10 texts"):
            _rescored(file, "textvqa", [{**_LOG, "target": target}])
    doc = {"question_id": 1, "question": "brand?", "answers": [{"answer": "nokia", "answer_id": n} for n in range(10)]}
    assert _rescored(file, "textvqa", [{**_LOG, "target": "answer", "doc": doc}])[0]["accuracy"] == 1.0


def test_the_answers_of_several_filters_are_refused(tmp_path: Path) -> None:
    records = [{**_LOG, "filter": name} for name in ("strict-match", "flexible-extract")]
    with pytest.raises(InputError, match="several filters: strict-match, flexible-extract"):
        _rescored(tmp_path / "log.jsonl", "own", records)


_POPE = {"question_id": 1, "category": "random", "question": "Is there a dog?", "answer": "Yes", "prediction": "Yes"}


def test_references_of_pope_in_any_case_are_scored_alike(tmp_path: Path) -> None:
    forms = [("Yes", "Yes"), ("yes", "Yes"), ("NO.", "No"), (" no ", "No")]
    records = [
        {**_POPE, "question_id": number, "answer": answer, "prediction": said}
        for number, (answer, said) in enumerate(forms)
    ]
    scores, notes = _rescored(tmp_path / "rows.jsonl", "pope", records)
    assert scores["accuracy"] == scores["f1"] == 1.0 and scores["n"] == 4 and not any("once" in note for note in notes)


def test_a_repeated_row_is_named_and_a_contradiction_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    scores, notes = _rescored(file, "pope", [_POPE] * 3)
    assert scores["n"] == 3 and "1 'Is there a dog?' (3 times)" in notes[0]
    # The same in two forms is no contradiction.
    assert _rescored(file, "pope", [_POPE, {**_POPE, "answer": "yes."}])[0]["n"] == 2
    with pytest.raises(InputError, match=r"different references or predictions: .*\(line 1, line 2\)"):
        _rescored(file, "pope", [_POPE, {**_POPE, "prediction": "No"}])
    # What --limit cuts off is not looked at.
    assert _rescored(file, "pope", [_POPE, {**_POPE, "prediction": "No"}], limit=1)[0]["n"] == 1


def test_another_benchmarks_rows_are_refused_by_their_lines(tmp_path: Path) -> None:
    records = [_POPE, {**_POPE, "question_id": 2, "category": "existence"}]
    with pytest.raises(InputError, match="not hold answers to pope: line 2: category is 'existence'"):
        _rescored(tmp_path / "rows.jsonl", "pope", records)


def test_predictions_may_be_one_array(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([_POPE, {**_POPE, "question_id": 2}], indent=1))
    assert list(read_predictions(file)) == ["object 1", "object 2"]
    file.write_text(json.dumps([_POPE, 5]))
    with pytest.raises(InputError, match="object 2 is not a JSON object"):
        read_predictions(file)
