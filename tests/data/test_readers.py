"""JSON and JSONL files: their content, and reports of their faults."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from m2pt_cli.data.readers import chosen, read_rows
from m2pt_cli.data.validation import ValidationReport
from m2pt_cli.errors import InputError

ROW = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "naïve"}]}


def write(tmp_path: Path, name: str, content: str | bytes) -> Path:
    file = tmp_path / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def test_a_list_and_lines_give_the_same_rows(tmp_path: Path) -> None:
    text = json.dumps(ROW, ensure_ascii=False)
    for name, content in (
        ("a.json", f"[{text}, {text}]"),
        ("a.jsonl", f"{text}\n\n{text}\r\n"),
        ("b.json", f"\ufeff[{text}]"),
    ):
        rows = read_rows(write(tmp_path, name, content), ValidationReport())
        assert [row for _, row in rows] == [ROW] * len(rows)
    assert [number for number, _ in read_rows(tmp_path / "a.jsonl", ValidationReport())] == [1, 3]


ONE = json.dumps(ROW, ensure_ascii=False)


@pytest.mark.parametrize(
    "content",
    [
        f"{ONE}\n{ONE}\n",
        f"[{ONE},\n{ONE}]",
        f"[{ONE}, {ONE}]",
        json.dumps([ROW, ROW], indent=2),
        f"\ufeff\n[{ONE},{ONE}]\n",
    ],
    ids=["lines", "array", "one line", "indented", "mark"],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson"])
def test_lists_and_lines_are_told_apart_by_the_content(tmp_path: Path, name: str, content: str) -> None:
    faults = ValidationReport()
    rows = read_rows(write(tmp_path, name, content), faults)
    assert rows == [(1, ROW), (2, ROW)][: content.count("naïve") or 2] and not faults.total


@pytest.mark.parametrize("content", [ONE, json.dumps(ROW, indent=2)], ids=["line", "indented"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_file_may_hold_a_single_sample(tmp_path: Path, name: str, content: str) -> None:
    assert read_rows(write(tmp_path, name, content), ValidationReport()) == [(1, ROW)]


def test_lines_that_are_lists_are_rows_of_the_wrong_kind(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path, "a.jsonl", f"[{ONE}]\n[{ONE}]\n"), ValidationReport())
    assert rows == [(1, [ROW]), (2, [ROW])]  # each is a faulty sample: a list instead of an object


def test_faulty_lines_are_gathered(tmp_path: Path) -> None:
    faults = ValidationReport()
    file = write(tmp_path, "a.jsonl", f"{json.dumps(ROW)}\n{{broken\n{json.dumps(ROW)}\n" + "[" * 100_000)
    assert len(read_rows(file, faults)) == 2
    assert faults.total == 2 and faults.shown[0].startswith("a.jsonl line 2: not valid JSON")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", json.dumps([ROW])[:-20], "a.json is truncated: the JSON breaks off at line 1"),
        ("a.json", '[{"id": 1,', "is truncated"),
        ("a.json", "[{'id': 1}]", "is not valid JSON: .* at line 1, column 3"),
        ("a.json", "", "a.json is empty"),
        ("a.json", "[]", "holds no samples"),
        ("a.jsonl", "\n\n", "holds no samples"),
        ("a.json", '{"data": []}', "holds a JSON object with the keys data, not a list"),
        ("a.json", "3", "holds a JSON value, not a list"),
        ("a.json", '{"id": 1}\n{"id": 2}', "has the columns id; conversations or messages was expected"),
        ("a.json", '[{"id": 1}]\n[{"id": 2}]', "more than one JSON value: a second begins at line 2"),
        ("a.jsonl", '[\n{"id": 1},\n', "a.jsonl is truncated: the JSON breaks off at line 3"),
        ("a.json", "[" * 100_000, "nested too deeply|is truncated"),
        ("a.json", '[{"question": "q", "answer": "a"}]', "has the columns question, answer; conversations or messages"),
        ("a.jsonl", '{"question": "q"}', "has the columns question; conversations or messages was expected"),
        ("a.json", b'[{"id": "caf\xe9"}]', "is not UTF-8 text: byte 0xe9 at position 12"),
    ],
)
def test_a_file_that_can_not_be_read_says_why(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_rows(write(tmp_path, name, content), ValidationReport())


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_rows(tmp_path / "a.json", ValidationReport())
    (tmp_path / "b.json").mkdir()
    with pytest.raises(InputError, match="can't be read: Is a directory"):
        read_rows(tmp_path / "b.json", ValidationReport())


def test_a_choice_keeps_the_order_and_follows_the_seed() -> None:
    items = list(range(100))
    some = chosen(items, 10, 0)
    assert some == sorted(some) and len(set(some)) == 10 and some == chosen(items, 10, 0) != chosen(items, 10, 1)
    assert chosen(items, None, 0) == chosen(items, 100, 0) == items
