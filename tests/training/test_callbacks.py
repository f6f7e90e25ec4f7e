from __future__ import annotations

import json
from pathlib import Path

import torch

from m2pt_cli.training.callbacks import keep_rows, peak_memory, read_rows


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


def test_peak_memory_of_this_process() -> None:
    peak = peak_memory(torch.device("cpu"))
    assert peak is None or 50 * 2**20 < peak < 2**40
