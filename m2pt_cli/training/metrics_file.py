"""``metrics.jsonl``: one row per step and per validation of the whole run, over all its starts. No torch import."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2pt_cli.training.checkpoints import write_text

METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class Earlier:
    """Results of the earlier starts of a run, up to the checkpoint that it resumes from.

    Attributes:
        losses: losses of the steps, in order; seconds: wall time of training; tokens: real tokens (no padding).
    """

    losses: tuple[float, ...] = ()
    seconds: float = 0.0
    tokens: int = 0


def keep_rows(file: Path, *, until: int) -> None:
    """Drop the rows after step ``until``: a resumed run writes them again."""
    if not file.is_file():
        return
    kept = [row for row in read_rows(file) if row["step"] <= until]
    write_text(file, "".join(json.dumps(row) + "\n" for row in kept))


def restore_rows(run_dir: Path, checkpoint: Path, *, until: int) -> None:
    """Restore the rows from a checkpoint's copy if the run's own file is missing or lacks some of them."""
    copy = read_rows(checkpoint / METRICS_FILE)
    own = [row for row in read_rows(run_dir / METRICS_FILE) if row["step"] <= until]
    if len(copy) > len(own):
        write_text(run_dir / METRICS_FILE, "".join(json.dumps(row) + "\n" for row in copy))


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a ``metrics.jsonl``; a last line truncated by a crash is ignored."""
    if not file.is_file():
        return []
    rows = (_row(line) for line in file.read_text(encoding="utf-8", errors="replace").splitlines())
    return [row for row in rows if row is not None]


def earlier(rows: Sequence[dict[str, Any]], *, until: int) -> Earlier:
    """Sum up the rows up to step ``until``."""
    steps = [row for row in rows if "loss" in row and row["step"] <= until]
    if not steps:
        return Earlier()
    last = steps[-1]
    return Earlier(tuple(row["loss"] for row in steps), float(last.get("seconds", 0.0)), int(last.get("tokens", 0)))


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
