"""Tables break no word and lose no cell, however narrow the terminal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from fixtures.made_maps import made_maps, made_run
from rich.console import Console

from m2pt_cli.cli.attn_table import attention_tables
from m2pt_cli.cli.count_params import count_table
from m2pt_cli.cli.eval_view import comparison_table, list_table, result_tables
from m2pt_cli.cli.tables import FittingTable, lines_of
from m2pt_cli.evaluation.results import Comparison, EvalResult, EvalRun
from m2pt_cli.models.catalog import entry_of
from m2pt_cli.models.count import Recipe, count_parameters


def printed(*renderables: Any, width: int) -> str:
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    with console.capture() as capture:
        console.print(*renderables)
    return capture.get()


def small() -> FittingTable:
    table = FittingTable()
    table.add_column("task", left=True)
    table.add_column("kind", left=True, spare=True)
    table.add_column("right % (95 % interval)")
    table.add_row("noisy-digit-truefalse", "unseen", "100.0 (51.0-100.0)", style="bold")
    table.add_section()
    table.add_row("pope", "unseen", "9.5 (1.0-20.0)")
    return table


@pytest.mark.parametrize(
    ("width", "form"),
    [(80, "lined"), (55, "lined"), (54, "bare"), (49, "bare"), (48, "spared"), (40, "spared"), (39, "records")],
)
def test_forms(width: int, form: str) -> None:
    text = printed(small(), width=width)
    assert max(map(len, text.splitlines())) <= width
    found = "lined" if "│" in text else "records" if "─" not in text else "bare" if "unseen" in text else "spared"
    assert found == form
    words = text.split()
    assert "noisy-digit-truefalse" in words and "pope" in words
    assert "(51.0-100.0)" in words or "(51.0-100.0)," in words


def test_records_hold_every_cell() -> None:
    assert [line.rstrip() for line in printed(small(), width=30).splitlines()] == [
        "noisy-digit-truefalse",
        "  kind unseen",
        "  right % (95 % interval)",
        "  100.0 (51.0-100.0)",
        "pope",
        "  kind unseen",
        "  right % (95 % interval) 9.5",
        "  (1.0-20.0)",
    ]


def test_a_row_of_another_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="1 cells in 3 columns"):
        small().add_row("alone")


def test_lines_break_between_parts() -> None:
    assert lines_of(["step 1/300", "loss 0.5", "left 1:00"], "   ", 22) == ["step 1/300   loss 0.5", "left 1:00"]
    assert lines_of(["a very long part", "b"], ", ", 5) == ["a very long part", "b"]
    assert lines_of([], ", ", 5) == []


def real_tables() -> list[Any]:
    part = {"accuracy": 0.5, "interval": [0.25, 1.0], "n": 1234, "majority": 0.3}
    demo = {
        **part, "seen": 1.0, "unseen": 0.5, "shuffled": None, "majority": {"seen": 0.3, "unseen": 0.3},
        "intervals": {"seen": [0.9, 1.0], "unseen": [0.1, 0.7], "accuracy": [0.4, 0.6]},
        "tasks": {"striped-shape-sentence": {**part, "seen": True}, "noisy-digit-truefalse": {**part, "seen": False}},
    }  # fmt: skip
    runs = [EvalRun(f"m2pt-nano-{n}", "nano", None, {"demo": demo}, {}, {}, 1.0) for n in range(3)]
    official = made_run(official=True, textual=10, visual=6)
    entry = entry_of("llava-v1-7b")
    counts = count_parameters(entry.name, entry.geometry, Recipe(method="lora"))
    comparison = Comparison("demo-shuffled", 4000, 0.5, 0.25, 1000, 12, 1e-50, True)
    sources = [{"name": "vsr", "source": "cambridgeltl/vsr_zeroshot", "cached": None, "questions": 1222}]
    return [
        *result_tables(EvalResult(tuple(runs[:1]), None)),
        *result_tables(EvalResult(tuple(runs), None)),
        *attention_tables(made_maps(official)),
        count_table(counts, entry.geometry.group_sizes),
        comparison_table([Path("a"), Path("b")], [comparison]),
        list_table(sources),
    ]


@pytest.mark.parametrize("width", [120, 80, 60, 40])
def test_no_command_breaks_a_word(width: int) -> None:
    """Every word that a wide terminal shows stands whole on a narrow one, and no line is longer than it."""

    def words(text: str) -> set[str]:
        return set(re.sub(r"[─━┃│┏┓┗┛┡┩└┘├┤┬┴┼╇┳╈┴]", " ", text).replace(",  ", " ").split())

    for table in real_tables():
        wide, narrow = printed(table, width=400), printed(table, width=width)
        assert max(map(len, narrow.splitlines())) <= width
        lost = words(wide) - {word.rstrip(",") for word in words(narrow)} - words(narrow)
        # What can be spared, and the title of the first column where each row stands by itself.
        assert lost <= {"seen", "unseen", "task", "layer", "run", "part", "name", "benchmark"}, (
            f"{lost} of {wide} in {narrow}"
        )
