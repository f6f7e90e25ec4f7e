"""The result of an evaluation: what ``results.json`` and ``--json`` hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m2pt_cli.data.samples import ImageReference
from m2pt_cli.evaluation.rows import Row


@dataclass(frozen=True)
class EvalRun:
    """One adapter (or the bare base) on its benchmarks.

    Attributes:
        name: what tables and folders call this run; not part of the JSON form.
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
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "name"}


@dataclass(frozen=True)
class EvalResult:
    """All runs of one ``m2pt eval``.

    Attributes:
        runs: one per adapter.
        output_dir: where their files are; None where nothing was written.
        rows: the marked answers, by run and benchmark; not part of the JSON form.
        images: what the questions were about, by benchmark and question; empty where existing answers were scored.
    """

    runs: tuple[EvalRun, ...]
    output_dir: Path | None
    rows: Mapping[str, Mapping[str, Sequence[Row]]] = field(default_factory=dict)
    images: Mapping[str, Mapping[str, ImageReference]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: one run's own keys, or ``{"runs": [...]}`` for several."""
        runs = [run.to_dict() for run in self.runs]
        return runs[0] if len(runs) == 1 else {"runs": runs}
