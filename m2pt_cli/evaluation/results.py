"""Results of an evaluation, and a significance test between two of them."""

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
    """The results of one adapter (or the base model) on its benchmarks.

    Attributes:
        name: name of the run in tables and folders; not part of the JSON form.
        base: name of the base; None if stored predictions were scored.
        adapter: ``{"name", "fingerprint"}``, or None for the base model.
        benchmarks: the results of each benchmark: fractions from 0 to 1, MME in points.
        settings: all settings that decide the answers and the scores.
        versions: of this tool and the libraries.
        seconds: wall time of answering since the last start, without loading.
        resumed: number of answers reused from an earlier start.
        mmavg: the paper's mean of seven accuracies, 0 to 100; None unless all seven are present.
        scored_by: ``rules`` or ``judge``.
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
        """Return the content of ``results.json``."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "name"}


@dataclass(frozen=True)
class EvalResult:
    """All runs of one ``m2pt eval``.

    Attributes:
        runs: one per adapter.
        output_dir: the folder of their files; None if nothing was written.
        rows: scored predictions by run and benchmark; not part of the JSON form.
        images: images by benchmark and question id; empty if stored predictions were scored.
    """

    runs: tuple[EvalRun, ...]
    output_dir: Path | None
    rows: Mapping[str, Mapping[str, Sequence[Prediction]]] = field(default_factory=dict)
    images: Mapping[str, Mapping[str, ImageReference]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: the keys of the only run, or ``{"runs": [...]}`` for several."""
        runs = [run.to_dict() for run in self.runs]
        return runs[0] if len(runs) == 1 else {"runs": runs}


def score_task(bench: Task, rows: Sequence[Prediction], protocol: str) -> dict[str, Any]:
    """Return the benchmark's scores with ``n`` (answered), ``failed`` (without an answer, in no score) and ``notes``.

    Args:
        bench: computes the scores.
        rows: scored predictions, with the failed ones.
        protocol: ``official`` or ``lmms-eval``.
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


# A difference with a smaller p-value is called significant.
LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """The comparison of two runs on one benchmark.

    Attributes:
        n: questions that both answered.
        first, second: accuracies on these questions, 0 to 1.
        only_first, only_second: questions that only one run got right (a soft score counts as right from 0.5).
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
        InputError: a folder has no predictions, the two have no benchmark or question in common, or the same id stands
            for different questions.
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
        # An evaluation of several adapters has a subfolder for each.
        below = sorted(str(file.parent) for file in folder.glob("*/results.json"))
        hint = f"name one of its runs: {', '.join(below)}" if below else "name a folder that m2pt eval has written"
        raise InputError(f"{folder} holds no predictions-*.jsonl", hint)
    # Sorting by name puts a benchmark before its blind baseline ("-shuffled").
    return dict(sorted(files.items()))


def _compare(bench: str, first: list[Prediction], second: list[Prediction]) -> Comparison:
    others = {row.id: row for row in answered(second)}
    pairs = [(row, others[row.id]) for row in answered(first) if row.id in others]
    if not pairs:
        raise InputError(
            f"the two runs on {bench} answered no question in common", "evaluate both with the same --limit"
        )
    different = next((a.id for a, b in pairs if a.answer != b.answer or a.question != b.question), None)
    if different is not None:
        raise InputError(f"question {different} of {bench} is another one in the two runs", "evaluate both alike")
    unscored = next((a.id for a, b in pairs if a.correct is None or b.correct is None), None)
    if unscored is not None:
        raise InputError(f"question {unscored} of {bench} is not marked", "name folders that m2pt eval has written")
    scores = [[float(row.correct or 0) for row in side] for side in zip(*pairs, strict=True)]
    test = mcnemar(*([score >= 0.5 for score in side] for side in scores))
    return Comparison(
        bench=bench,
        n=len(pairs),
        first=mean(scores[0]) or 0.0,
        second=mean(scores[1]) or 0.0,
        only_first=test.only_first,
        only_second=test.only_second,
        p_value=test.p_value,
        significant=test.p_value < LEVEL,
    )


def _names(files: dict[str, Path]) -> str:
    return ", ".join(files)
