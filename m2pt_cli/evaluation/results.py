"""Results of an evaluation, and significance tests between two evaluations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m2pt_cli.data.sample import ImageReference
from m2pt_cli.errors import InputError
from m2pt_cli.evaluation.metrics import mcnemar, mean
from m2pt_cli.evaluation.task import Prediction, Task, answered, read_rows


@dataclass(frozen=True)
class EvalRun:
    """One adapter (or the bare base) on its benchmarks.

    Attributes:
        name: what tables and folders call this run.
        base: the base's name; None where stored predictions were scored.
        adapter: ``{"name", "fingerprint"}``, or None for the bare base.
        benchmarks: a block of scores per benchmark; fractions from 0 to 1, MME in points, ``mmavg`` from 0 to 100.
        mmavg: the paper's mean of seven accuracies, 0 to 100; None unless all parts are there.
        scored_by: ``rules``, or ``judge``.
        settings: everything that decides the answers and the scores.
        versions: of this tool and the libraries.
        seconds: wall time of this start of the run, loading left out.
        resumed: answers taken over from an earlier start.
    """

    name: str
    base: str | None
    adapter: dict[str, str | None] | None
    benchmarks: dict[str, Any]
    settings: dict[str, Any]
    versions: dict[str, str]
    seconds: float
    resumed: int = 0
    mmavg: float | None = None
    scored_by: str = "rules"

    def to_dict(self) -> dict[str, Any]:
        """The content of ``results.json``."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@dataclass(frozen=True)
class EvalResult:
    """All runs of one ``m2pt eval``.

    Attributes:
        runs: one per adapter.
        output_dir: where their files are; None where nothing was written.
        rows: the scored answers, by run and benchmark; not part of the JSON form.
        images: what the questions were about, by benchmark and question; empty where existing answers were scored.
    """

    runs: tuple[EvalRun, ...]
    output_dir: Path | None
    rows: Mapping[str, Mapping[str, Sequence[Prediction]]] = field(default_factory=dict)
    images: Mapping[str, Mapping[str, ImageReference]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: one run's own keys, or ``{"runs": [...]}`` for several."""
        runs = [run.to_dict() for run in self.runs]
        return runs[0] if len(runs) == 1 else {"runs": runs}


@dataclass(frozen=True)
class Headline:
    """A number that stands for a benchmark; ``interval`` as ``(low, high)``, None where the number has none."""

    value: float | None
    interval: tuple[float, float] | None = None


def headlines(run: EvalRun) -> dict[str, Headline]:
    """Return the headline scores of a run as in the paper's table 1, by column title."""
    row: dict[str, Headline] = {}
    for name, block in run.benchmarks.items():
        keys = [key for key in ("perception", "cognition", "total", "seen", "unseen", "accuracy", "f1") if key in block]
        intervals = {"accuracy": block.get("interval")} | (block.get("intervals") or {})
        for key in keys:
            if key == "f1" and "splits" not in block:
                continue
            interval = intervals.get(key)
            ends = None if interval is None else (interval[0], interval[1])
            row[name if key == "accuracy" else f"{name} {key}"] = Headline(block[key], ends)
        if (blind := block.get("shuffled")) is not None:
            row[f"{name} blind"] = Headline(blind["total" if "perception" in blind else "accuracy"])
    if run.mmavg is not None:
        row["mmavg"] = Headline(run.mmavg)
    return row


def score_task(bench: Task, rows: Sequence[Prediction], protocol: str) -> dict[str, Any]:
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


def _notes(bench: Task, scores: dict[str, Any], failed: int, n: int) -> list[str]:
    notes = []
    if failed:
        notes.append(f"{failed} questions failed and are in no score")
    if scores.get("incomplete"):
        notes.append(f"{scores['incomplete']} images have one question only: counted in acc, not in acc+")
    if bench.size is not None and n + failed < bench.size:
        notes.append(f"{n + failed:,} of {bench.size:,} questions")
    return notes


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


def _compare(bench: str, first: list[Prediction], second: list[Prediction]) -> Comparison:
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
