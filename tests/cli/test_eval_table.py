"""The summary that m2pt eval ends with."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from rich.console import Console

from m2pt_cli.cli.eval_table import failures_table, result_tables
from m2pt_cli.evaluation.results import EvalResult, EvalRun
from m2pt_cli.evaluation.rows import Row


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


def test_no_cell_is_cut_off_on_a_narrow_screen() -> None:
    row = Row("a-question-with-a-long-name-17#0", "q", None, None, "What is it?", "cat", "dog", correct=False)
    block = {"accuracy": 0.833, "interval": [0.552, 0.953], "n": 9, "shuffled": None}
    result = EvalResult((EvalRun("an-adapter-with-a-long-name", "nano", None, {"textvqa": block}, {}, {}, 1.0),), None)
    result = dataclasses.replace(result, rows={"an-adapter-with-a-long-name": {"textvqa": [row]}})
    console = Console(width=40)
    with console.capture() as capture:
        console.print(*result_tables(result), failures_table(result, 1))
    shown = capture.get()
    assert "…" not in shown and max(map(len, shown.splitlines())) <= 40
    columns = [[cell.strip() for cell in line.strip("│").split("│")] for line in shown.splitlines() if line[:1] == "│"]
    words = ["".join(parts) for parts in zip(*(cells for cells in columns if len(cells) == 5), strict=True)]
    assert "a-question-with-a-long-name-17#0" in words[1]
