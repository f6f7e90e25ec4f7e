"""Two runs compared on the questions they share."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from m2pt_cli.errors import InputError
from m2pt_cli.evaluation.compare import compare_folders
from m2pt_cli.evaluation.rows import Mark, Row, write_rows

from .stand_ins import item


def _write(folder: Path, marks: str, name: str = "demo") -> list[Row]:
    """Rows by a string of marks: ``+`` right, ``-`` wrong, ``x`` failed."""
    rows = []
    for number, mark in enumerate(marks):
        row = Row.of(item(number), None if mark == "x" else "said", "broken" if mark == "x" else None)
        rows.append(row.marked(Mark("said", mark == "+")))
    folder.mkdir(exist_ok=True)
    write_rows(folder / f"predictions-{name}.jsonl", rows)
    return rows


def test_a_clear_difference_is_significant(tmp_path: Path) -> None:
    _write(tmp_path / "a", "+" * 12 + "-" * 2 + "+" * 6)
    _write(tmp_path / "b", "-" * 12 + "+" * 2 + "+" * 6)
    (result,) = compare_folders(tmp_path / "a", tmp_path / "b")
    assert (result.bench, result.n, result.only_first, result.only_second) == ("demo", 20, 12, 2)
    assert (result.first, result.second) == (0.9, 0.4)
    assert result.p_value == pytest.approx(0.012939453125) and result.significant


def test_failed_and_missing_questions_are_left_out(tmp_path: Path) -> None:
    _write(tmp_path / "a", "+-+x+")
    _write(tmp_path / "b", "x-++")
    (result,) = compare_folders(tmp_path / "a", tmp_path / "b")
    assert (result.n, result.first, result.second, result.p_value) == (2, 0.5, 0.5, 1.0)
    assert not result.significant


def test_only_benchmarks_in_common_are_compared(tmp_path: Path) -> None:
    for name in ("demo", "mme"):
        _write(tmp_path / "a", "+-", name)
    _write(tmp_path / "b", "++", "mme")
    assert [result.bench for result in compare_folders(tmp_path / "a", tmp_path / "b")] == ["mme"]


def test_runs_that_can_not_be_compared_are_refused(tmp_path: Path) -> None:
    rows = _write(tmp_path / "a", "+-")
    with pytest.raises(InputError, match="holds no predictions"):
        compare_folders(tmp_path / "a", tmp_path)
    _write(tmp_path / "b", "+-", "mme")
    with pytest.raises(InputError, match="no benchmark in common: demo and mme"):
        compare_folders(tmp_path / "a", tmp_path / "b")
    other = [dataclasses.replace(row, question="Another?") for row in rows]
    (tmp_path / "c").mkdir()
    write_rows(tmp_path / "c" / "predictions-demo.jsonl", other)
    with pytest.raises(InputError, match="is another one in the two runs"):
        compare_folders(tmp_path / "a", tmp_path / "c")
    write_rows(tmp_path / "c" / "predictions-demo.jsonl", [dataclasses.replace(row, correct=None) for row in rows])
    with pytest.raises(InputError, match="is not marked"):
        compare_folders(tmp_path / "a", tmp_path / "c")


def test_a_folder_of_several_runs_names_them(tmp_path: Path) -> None:
    (tmp_path / "both" / "one").mkdir(parents=True)
    (tmp_path / "both" / "one" / "results.json").write_text("{}")
    with pytest.raises(InputError, match="holds no predictions") as caught:
        compare_folders(tmp_path / "both", tmp_path / "both")
    assert str(tmp_path / "both" / "one") in str(caught.value.hint)


def test_a_benchmark_stands_before_its_blind_control(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        for name in ("demo-shuffled", "demo"):
            _write(tmp_path / folder, "+-", name)
    assert [result.bench for result in compare_folders(tmp_path / "a", tmp_path / "b")] == ["demo", "demo-shuffled"]
