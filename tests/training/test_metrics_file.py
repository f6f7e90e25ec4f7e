"""``metrics.jsonl`` over several starts: no row twice, none lost, and sums that go on."""

from __future__ import annotations

import json
from pathlib import Path

from m2pt_cli.training.metrics_file import Earlier, earlier, keep_rows, read_rows, restore_rows


def write(file: Path, steps: list[int], tail: str = "") -> None:
    file.write_text("".join(json.dumps({"step": step, "loss": step / 10}) + "\n" for step in steps) + tail)


def test_rows_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    keep_rows(file, until=4)
    assert not file.exists()
    write(file, [1, 2, 3, 4, 4, 5, 6], tail='{"step": 7, "lo')
    assert [row["step"] for row in read_rows(file)] == [1, 2, 3, 4, 4, 5, 6]
    keep_rows(file, until=4)
    assert [row["step"] for row in read_rows(file)] == [1, 2, 3, 4, 4]
    keep_rows(file, until=0)
    assert file.read_text() == ""


def test_no_rows_without_a_file(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "metrics.jsonl") == []


def test_a_checkpoints_copy_replaces_rows_that_are_lost(tmp_path: Path) -> None:
    run, checkpoint = tmp_path / "run", tmp_path / "run" / "checkpoint-4"
    checkpoint.mkdir(parents=True)
    write(checkpoint / "metrics.jsonl", [1, 2, 3, 4])
    restore_rows(run, checkpoint, until=4)
    assert [row["step"] for row in read_rows(run / "metrics.jsonl")] == [1, 2, 3, 4]
    write(run / "metrics.jsonl", [1, 4, 5, 6])  # damaged in the middle; what comes after the checkpoint does not count
    restore_rows(run, checkpoint, until=4)
    assert [row["step"] for row in read_rows(run / "metrics.jsonl")] == [1, 2, 3, 4]
    write(run / "metrics.jsonl", [1, 2, 3, 4, 5])
    restore_rows(run, checkpoint, until=4)
    assert [row["step"] for row in read_rows(run / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_what_earlier_starts_did() -> None:
    rows = [
        {"step": 1, "loss": 2.0, "seconds": 1.5, "tokens": 10},
        {"step": 2, "loss": 1.0, "seconds": 3.0, "tokens": 25},
        {"step": 2, "validation_loss": 9.0},
        {"step": 3, "loss": 0.5, "seconds": 4.5, "tokens": 30},
    ]
    assert earlier(rows, until=2) == Earlier((2.0, 1.0), 3.0, 25)
    assert earlier(rows, until=0) == Earlier()
    assert earlier([{"step": 1, "loss": 2.0, "seconds": 1.5}], until=1) == Earlier((2.0,), 1.5, 0)  # of an older m2pt
