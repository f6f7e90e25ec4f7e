"""The summary that m2pt eval ends with."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from m2pt_cli.cli.eval_table import result_tables
from m2pt_cli.evaluation.results import EvalResult, EvalRun


def summary(**accuracies: float | None) -> dict[str, str]:
    """The row of each run as it is printed, by its name."""
    runs = []
    for name, accuracy in accuracies.items():
        block: dict[str, Any] = {"accuracy": accuracy, "interval": None, "n": 9, "shuffled": None}
        runs.append(EvalRun(name, "nano", None, {"textvqa": block}, {}, {}, 1.0))
    console = Console(width=80)
    with console.capture() as capture:
        console.print(result_tables(EvalResult(tuple(runs), None))[-1])
    rows = [line.strip("│ ").split("│") for line in capture.get().splitlines() if line.startswith("│")]
    return {row[0].strip(): row[1].strip() for row in rows}


@pytest.mark.parametrize(
    ("accuracies", "cells"),
    [
        ({"a": 0.25, "b": 0.5}, ["25.0", "50.0 *"]),
        ({"a": 0.5, "b": 0.25, "c": 0.5}, ["50.0 *", "25.0", "50.0 *"]),
        ({"a": 0.0, "b": 0.0}, ["0.0", "0.0"]),
        ({"a": 0.5, "b": 0.5}, ["50.0", "50.0"]),
        ({"a": None, "b": 0.5, "c": 0.25}, ["-", "50.0 *", "25.0"]),
        ({"a": None, "b": None}, ["-", "-"]),
        ({"a": 0.5}, ["50.0"]),
    ],
)
def test_the_best_of_a_column_is_marked_where_runs_differ(accuracies: dict[str, Any], cells: list[str]) -> None:
    assert list(summary(**accuracies).values()) == cells
