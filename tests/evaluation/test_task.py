"""Predictions: written files are read back; other files are rejected with every fault listed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.stand_ins import item

from m2pt_cli.errors import InputError
from m2pt_cli.evaluation.task import Prediction, Score, read_rows, unique_ids, write_predictions


def test_rows_survive_a_round_trip(tmp_path: Path) -> None:
    good = Prediction.of(item(1), "Yes \u2028 [/INST] \x1b").marked(Score("yes", True))
    failed = Prediction.of(item(2), None, "image can't be read").marked(Score("yes", True))
    file = tmp_path / "predictions-x.jsonl"
    write_predictions(file, [good, failed])
    first, second = read_rows(file)
    assert (first, second) == (good, failed)
    assert second.failed and second.prediction is None and second.correct is None
    keys = ["id", "question_id", "category", "image", "question", "answer", "prediction", "parsed", "correct", "error"]
    assert list(json.loads(file.read_text(encoding="utf-8").split("\n")[0])) == keys


def test_a_failed_row_is_not_wrong() -> None:
    assert Prediction.of(item(1), None, "broken").marked(Score("no", False)).correct is None


def test_minimal_rows_get_unique_ids(tmp_path: Path) -> None:
    file = tmp_path / "other.jsonl"
    row = {"question_id": 7, "category": "random", "question": "?", "answer": "no", "prediction": "No"}
    file.write_text("".join(json.dumps(row) + "\n" for _ in range(2)), encoding="utf-8")
    rows = read_rows(file)
    assert [row.id for row in rows] == ["7#0", "7#1"]
    assert rows[0].image is None and not rows[0].failed


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_is_read_as_its_members_are_as_lines(tmp_path: Path, indent: int | None) -> None:
    rows = [
        {"question_id": n, "category": None, "question": "naïve?", "answer": "no", "prediction": "No"} for n in "ab"
    ]
    lines, array = tmp_path / "lines.jsonl", tmp_path / "array.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    array.write_text(json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8")
    assert read_rows(array) == read_rows(lines) and len(read_rows(array)) == 2
    array.write_text(json.dumps([rows[0], [rows[1]]], indent=indent), encoding="utf-8")
    with pytest.raises(InputError, match=r"holds 1 bad lines: (line|object) 2"):
        read_rows(array)


def test_every_fault_of_a_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"question_id": 1}\nnot json\n[]\n{"question_id":1,"question":"?","answer":3,"prediction":"x"}\n')
    with pytest.raises(InputError) as caught:
        read_rows(file)
    message = caught.value.message
    assert "4 bad lines" in message and "line 1 has no question, answer, prediction" in message
    assert "line 2 is not valid JSON" in message and "line 3 is not a JSON object" in message
    assert "line 4 has the answer '3'" in message


def test_missing_and_empty_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be read"):
        read_rows(tmp_path / "none.jsonl")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    with pytest.raises(InputError, match="holds no rows"):
        read_rows(empty)


def test_unique_ids_count_within_a_question() -> None:
    assert unique_ids(["a", "b", "a"]) == ["a#0", "b#0", "a#1"]


def test_a_mark_that_is_no_number_is_none(tmp_path: Path) -> None:
    line = '{"question_id": 1, "question": "?", "answer": "a", "prediction": "\\ud83d", "correct": NaN}\n'
    (tmp_path / "rows.jsonl").write_text(line)
    (row,) = read_rows(tmp_path / "rows.jsonl")
    assert row.correct is None
    # Half a character, which JSON can spell and UTF-8 can't, is written as JSON spells it.
    write_predictions(tmp_path / "again.jsonl", [row])
    assert read_rows(tmp_path / "again.jsonl") == [row]
