"""Progress of an evaluation on stderr: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from m2pt_cli.cli.eval_view import EvalProgress, _Line, failures_table, result_tables
from m2pt_cli.cli.output import Output
from m2pt_cli.evaluation.events import Notice, Progress
from m2pt_cli.evaluation.results import EvalResult, EvalRun
from m2pt_cli.evaluation.task import Prediction


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _state(done: int, *, bench: str = "demo-shuffled", resumed: int = 0, failed: int = 0) -> Progress:
    return Progress("an-adapter", bench, done, 4000, resumed, failed, 0.5 if done else None)


def _shown(
    patch: pytest.MonkeyPatch, events: Sequence[Notice | Progress], *, columns: int | None = 80, term: str = "xterm"
) -> str:
    """What stderr gets: a terminal so many columns wide that redraws at every event, or a file for None."""
    stream = io.StringIO() if columns is None else _Terminal()
    patch.setattr(sys, "stderr", stream)
    patch.setenv("TERM", term)
    patch.setenv("COLUMNS", str(columns or 80))
    if columns is not None:
        patch.setattr("m2pt_cli.cli.eval_view._DRAW_EVERY", 0.0)
    with EvalProgress(Output()) as progress:
        for event in events:
            progress(event)
    return stream.getvalue()


def test_off_a_terminal_there_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [Notice("writing to evals/x"), *(_state(done, resumed=7) for done in range(7, 4001))]
    lines = _shown(monkeypatch, events, columns=None).splitlines()
    assert lines[:2] == [
        "writing to evals/x",
        "an-adapter on demo-shuffled: 7/4,000, 7 from an earlier start, 50.0 % right so far",
    ]
    assert len(lines) == 3 and lines[2].startswith("an-adapter on demo-shuffled: 4,000/4,000, 7 from an earlier start")


def test_on_a_terminal_where_it_goes_on_stays_on_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    err = _shown(monkeypatch, [_state(242, resumed=242), _state(243, resumed=242), _state(0, bench="mme")])
    assert err.count("an-adapter on demo-shuffled: 242 of 4,000 answers are from an earlier start\n") == 1
    assert "mme: 0 of" not in err and "243/4,000" in err


@pytest.mark.parametrize(("columns", "has_speed"), [(80, True), (72, True), (60, False), (52, False)])
def test_a_narrow_terminal_shows_what_matters(columns: int, has_speed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    err = _shown(monkeypatch, [_state(0), _state(3999)], columns=columns)
    assert ("questions/s" in err) is has_speed
    assert "demo-shuffled" in err and "3,999/4,000" in err and "50.0" in err and "…" not in err


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    err = _shown(monkeypatch, [_state(0), _state(4000)], term="dumb")
    assert "\x1b" not in err and err.count("\n") == 2


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
    row = Prediction("a-question-with-a-long-name-17#0", "q", None, None, "What is it?", "cat", "dog", correct=False)
    block = {"accuracy": 0.833, "interval": [0.552, 0.953], "n": 9, "shuffled": None}
    result = EvalResult((EvalRun("an-adapter-with-a-long-name", "nano", None, {"textvqa": block}, {}, {}, 1.0),), None)
    result = dataclasses.replace(result, rows={"an-adapter-with-a-long-name": {"textvqa": [row]}})
    console = Console(width=40)
    with console.capture() as capture:
        console.print(*result_tables(result), failures_table(result, 1))
    shown = capture.get()
    assert "…" not in shown and max(map(len, shown.splitlines())) <= 40
    assert "a-question-with-a-long-name-17#0" in shown.split()  # in one line


def _printed(*runs: EvalRun) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(result_tables(EvalResult(runs, None))[-1])
    return capture.get()


def _block(**scores: Any) -> dict[str, Any]:
    return {"interval": None, "n": 9, "shuffled": None, "categories": {}, **scores}


def test_the_title_promises_what_the_table_holds() -> None:
    plain = EvalRun("a", "nano", {"name": "a"}, {"vsr": _block(accuracy=0.5)}, {}, {}, 1.0)
    exact = dataclasses.replace(plain, benchmarks={"vsr": _block(accuracy=0.5, interval=[0.4, 0.6])})
    mme = dataclasses.replace(plain, benchmarks={"mme": _block(perception=900.0, cognition=None, total=900.0)})
    both = dataclasses.replace(plain, benchmarks={**exact.benchmarks, **mme.benchmarks})
    titles = [_printed(run).splitlines()[0].rstrip() for run in (plain, exact, mme, both)]
    assert titles == [
        "Scores, in percent",
        "Scores, in percent (95 % interval)",
        "Scores, in points",
        "Scores, in percent (95 % interval); MME in points",
    ]
    # Of several runs no interval is shown, and no star where they are equal.
    assert _printed(exact, exact).splitlines()[0].rstrip() == "Scores, in percent" and "*" not in _printed(exact, exact)


def test_the_bare_base_is_called_so() -> None:
    run = EvalRun("nano", "nano", None, {"vsr": _block(accuracy=0.5)}, {}, {}, 1.0)
    assert "nano (bare base)" in _printed(run)
    assert "bare base" not in _printed(dataclasses.replace(run, adapter={"name": "x"}))
    # Answers made elsewhere are of no base that is known here.
    assert "bare base" not in _printed(dataclasses.replace(run, base=None))


def test_no_failures_are_one_line() -> None:
    right = Prediction("q#0", "q", None, None, "?", "cat", "cat", correct=True)
    result = EvalResult((), None, rows={"a": {"vsr": [right]}})
    console = Console(width=80)
    with console.capture() as capture:
        console.print(failures_table(result, 3))
    assert capture.get() == "No failed or wrong answers\n"


def test_a_finished_benchmark_keeps_its_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("m2pt_cli.cli.eval_view.time.monotonic", lambda: now[0])
    line = _Line(_state(0))
    now[0] = 40.0
    line.take(_state(4000))
    assert line.cells()[3] == "100.0"
    now[0] = 4000.0
    assert line.cells()[3] == "100.0"


@pytest.mark.parametrize("columns", [120, 80, 60])
def test_the_moving_table_keeps_its_numbers_and_the_end_of_a_name(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "m2pt-nano-demo-with-a-long-name-and-many-words-seed1"
    event = dataclasses.replace(_state(1234), run=name)
    shown = _shown(monkeypatch, [event], columns=columns)
    line = [line for line in shown.splitlines() if "1,234/4,000" in line][-1]
    assert "demo-shuffled" in line and "50.0" in line
    assert name in line if columns == 120 else "…" in line and "seed1" in line
