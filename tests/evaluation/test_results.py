"""results.json: failures are counted apart from wrong answers; notes; MMAvg."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from fixtures.scored import marked_rows
from fixtures.stand_ins import item

from m2pt_cli.errors import InputError
from m2pt_cli.evaluation.metrics import PARTS, mmavg
from m2pt_cli.evaluation.results import compare_folders, score_task
from m2pt_cli.evaluation.task import Prediction, Score, write_predictions
from m2pt_cli.evaluation.tasks.mme import BENCHMARK as MME


def test_failures_are_counted_apart_and_change_no_score() -> None:
    rows = marked_rows(MME, "mme_predictions.jsonl", "official")[:20]
    failed = Prediction("x#0", "x", "existence", None, "?", "yes", None, error="image can't be read")
    clean, with_failure = score_task(MME, rows, "official"), score_task(MME, [*rows, failed], "official")
    assert with_failure["categories"] == clean["categories"]
    assert (clean["failed"], with_failure["failed"], with_failure["n"]) == (0, 1, 20)
    assert "1 questions failed and are in no score" in with_failure["notes"]


def test_a_part_of_the_questions_and_half_a_pair_are_noted() -> None:
    block = score_task(MME, marked_rows(MME, "mme_predictions.jsonl", "official")[:3], "official")
    assert any("one question only" in note for note in block["notes"])
    assert "3 of 2,374 questions" in block["notes"]


def test_mmavg_is_the_mean_of_seven() -> None:
    blocks = {name: {"accuracy": number / 10} for number, name in enumerate(PARTS, start=1)}
    # MME is not a part, and POPE's F1 is not what counts.
    blocks = {**blocks, "mme": {"total": 1500.0}, "pope": {"accuracy": 0.7, "f1": 0.1}}
    assert mmavg(blocks) == pytest.approx(40.0)
    assert mmavg({name: block for name, block in blocks.items() if name != "mnist"}) is None
    assert mmavg({**blocks, "vsr": {"accuracy": None}}) is None


def _write(folder: Path, marks: str, name: str = "demo") -> list[Prediction]:
    """Rows by a string of marks: ``+`` right, ``-`` wrong, ``x`` failed."""
    rows = []
    for number, mark in enumerate(marks):
        row = Prediction.of(item(number), None if mark == "x" else "said", "broken" if mark == "x" else None)
        rows.append(row.marked(Score("said", mark == "+")))
    folder.mkdir(exist_ok=True)
    write_predictions(folder / f"predictions-{name}.jsonl", rows)
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
    write_predictions(tmp_path / "c" / "predictions-demo.jsonl", other)
    with pytest.raises(InputError, match="is another one in the two runs"):
        compare_folders(tmp_path / "a", tmp_path / "c")
    write_predictions(
        tmp_path / "c" / "predictions-demo.jsonl", [dataclasses.replace(row, correct=None) for row in rows]
    )
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
