"""Blocks of results.json: failures apart from wrong answers, notes, MMAvg."""

from __future__ import annotations

import pytest

from m2pt_cli.evaluation.benchmarks.mme import BENCHMARK as MME
from m2pt_cli.evaluation.blocks import score_block
from m2pt_cli.evaluation.mmavg import PARTS, mmavg
from m2pt_cli.evaluation.rows import Row

from .scored import marked_rows


def test_failures_are_counted_apart_and_change_no_score() -> None:
    rows = marked_rows(MME, "mme_predictions.jsonl", "official")[:20]
    failed = Row("x#0", "x", "existence", None, "?", "yes", None, error="image can't be read")
    clean, with_failure = score_block(MME, rows, "official"), score_block(MME, [*rows, failed], "official")
    assert with_failure["categories"] == clean["categories"]
    assert (clean["failed"], with_failure["failed"], with_failure["n"]) == (0, 1, 20)
    assert "1 questions failed and are in no score" in with_failure["notes"]


def test_a_part_of_the_questions_and_half_a_pair_are_noted() -> None:
    block = score_block(MME, marked_rows(MME, "mme_predictions.jsonl", "official")[:3], "official")
    assert any("one question only" in note for note in block["notes"])
    assert "3 of 2,374 questions" in block["notes"]


def test_mmavg_is_the_mean_of_seven() -> None:
    blocks = {name: {"accuracy": number / 10} for number, name in enumerate(PARTS, start=1)}
    # MME is not a part, and POPE's F1 is not what counts.
    blocks = {**blocks, "mme": {"total": 1500.0}, "pope": {"accuracy": 0.7, "f1": 0.1}}
    assert mmavg(blocks) == pytest.approx(40.0)
    assert mmavg({name: block for name, block in blocks.items() if name != "mnist"}) is None
    assert mmavg({**blocks, "vsr": {"accuracy": None}}) is None
