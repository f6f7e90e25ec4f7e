"""Reading the reference scores under tests/scoring and comparing nested numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from m2pt_cli.evaluation.benchmark import Benchmark
from m2pt_cli.evaluation.rows import Row, read_rows

SCORING = Path(__file__).parent.parent / "scoring"


def expected(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((SCORING / name).read_text(encoding="utf-8"))
    return content


def marked_rows(bench: Benchmark, file: str, protocol: str) -> list[Row]:
    return [row.marked(bench.mark(row, protocol)) for row in read_rows(SCORING / file)]


def assert_close(found: Any, wanted: float) -> None:
    assert found == pytest.approx(wanted, abs=1e-6)
