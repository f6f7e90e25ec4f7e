"""A benchmark's block of ``results.json``: its scores, and what is odd about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from m2pt_cli.evaluation.benchmark import Benchmark
from m2pt_cli.evaluation.rows import Row, answered


def score_block(bench: Benchmark, rows: Sequence[Row], protocol: str) -> dict[str, Any]:
    """The benchmark's scores with ``n`` (answered), ``failed`` (no answer, in no score) and ``notes``.

    Args:
        bench: scores the rows.
        rows: marked rows, failed ones included.
        protocol: whose rules are followed.
    """
    scores = bench.scores(rows, protocol)
    n = len(answered(rows))
    failed = len(rows) - n
    return {
        **scores,
        "n": n,
        "failed": failed,
        "notes": _notes(bench, scores, failed, n),
        "shuffled": None,
        "judge": None,
    }


def _notes(bench: Benchmark, scores: dict[str, Any], failed: int, n: int) -> list[str]:
    notes = []
    if failed:
        notes.append(f"{failed} questions failed and are in no score")
    if scores.get("incomplete"):
        notes.append(f"{scores['incomplete']} images have one question only: counted in acc, not in acc+")
    if bench.size is not None and n + failed < bench.size:
        notes.append(f"{n + failed:,} of {bench.size:,} questions")
    return notes
