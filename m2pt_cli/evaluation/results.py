"""The result of an evaluation: what ``results.json`` and ``--json`` hold."""

from __future__ import annotations

import dataclasses
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from m2pt_cli.version import __version__


@dataclass(frozen=True)
class EvalRun:
    """One adapter (or the bare base) on its benchmarks.

    Attributes:
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

    base: str | None
    adapter: dict[str, str | None] | None
    benchmarks: dict[str, Any]
    settings: dict[str, Any]
    versions: dict[str, str]
    seconds: float
    resumed: int = 0
    mmavg: float | None = None
    scored_by: str = "rules"

    @property
    def name(self) -> str:
        """What a table calls this run."""
        if self.adapter is not None:
            return str(self.adapter["name"])
        return self.base or "predictions"


@dataclass(frozen=True)
class EvalResult:
    """All runs of one ``m2pt eval``, and where their files are (None where nothing was written)."""

    runs: tuple[EvalRun, ...]
    output_dir: Path | None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: one run's own keys, or ``{"runs": [...]}`` for several."""
        runs = [dataclasses.asdict(run) for run in self.runs]
        return runs[0] if len(runs) == 1 else {"runs": runs}


def library_versions(*packages: str) -> dict[str, str]:
    """Versions of this tool, of Python and of the named packages."""
    versions = {"m2pt": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
