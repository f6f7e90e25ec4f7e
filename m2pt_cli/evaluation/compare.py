"""Do two runs differ by more than chance: McNemar's test on the questions both answered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from m2pt_cli.errors import InputError
from m2pt_cli.evaluation.rows import Row, answered, read_rows
from m2pt_cli.evaluation.statistics import mcnemar, mean

# Below this a difference is called significant.
LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """Two runs on one benchmark.

    Attributes:
        n: questions both answered.
        first, second: their accuracies on those, 0 to 1.
        only_first, only_second: questions that one alone got right (a soft mark counts from 0.5).
        p_value: of McNemar's exact test.
        significant: whether the p-value is below 0.05.
    """

    bench: str
    n: int
    first: float
    second: float
    only_first: int
    only_second: int
    p_value: float
    significant: bool


def compare_folders(first: Path, second: Path) -> list[Comparison]:
    """Compare the predictions of two evaluation directories, benchmark by benchmark.

    Raises:
        InputError: a folder without predictions, no benchmark in common, or other questions under the same ids.
    """
    files = [_prediction_files(folder) for folder in (first, second)]
    common = [name for name in files[0] if name in files[1]]
    if not common:
        raise InputError(
            f"{first} and {second} have no benchmark in common: {_names(files[0])} and {_names(files[1])}",
            "evaluate both on the same --bench",
        )
    return [_compare(name, read_rows(files[0][name]), read_rows(files[1][name])) for name in common]


def _prediction_files(folder: Path) -> dict[str, Path]:
    files = {file.stem.removeprefix("predictions-"): file for file in folder.glob("predictions-*.jsonl")}
    if not files:
        # An evaluation of several adapters has a folder for each.
        below = sorted(str(file.parent) for file in folder.glob("*/results.json"))
        hint = f"name one of its runs: {', '.join(below)}" if below else "name a folder that m2pt eval has written"
        raise InputError(f"{folder} holds no predictions-*.jsonl", hint)
    # By name: a benchmark before its blind control.
    return dict(sorted(files.items()))


def _compare(bench: str, first: list[Row], second: list[Row]) -> Comparison:
    others = {row.id: row for row in answered(second)}
    pairs = [(row, others[row.id]) for row in answered(first) if row.id in others]
    if not pairs:
        raise InputError(
            f"the two runs on {bench} answered no question in common", "evaluate both with the same --limit"
        )
    strange = next((a.id for a, b in pairs if a.answer != b.answer or a.question != b.question), None)
    if strange is not None:
        raise InputError(f"question {strange} of {bench} is another one in the two runs", "evaluate both alike")
    unmarked = next((a.id for a, b in pairs if a.correct is None or b.correct is None), None)
    if unmarked is not None:
        raise InputError(f"question {unmarked} of {bench} is not marked", "name folders that m2pt eval has written")
    marks = [[float(row.correct or 0) for row in side] for side in zip(*pairs, strict=True)]
    test = mcnemar(*([mark >= 0.5 for mark in side] for side in marks))
    return Comparison(
        bench=bench,
        n=len(pairs),
        first=mean(marks[0]) or 0.0,
        second=mean(marks[1]) or 0.0,
        only_first=test.only_first,
        only_second=test.only_second,
        p_value=test.p_value,
        significant=test.p_value < LEVEL,
    )


def _names(files: dict[str, Path]) -> str:
    return ", ".join(files)
