"""Scores of existing answers: no model, no data set, no network."""

from __future__ import annotations

from pathlib import Path

from m2pt_cli.errors import InputError, SettingsError
from m2pt_cli.evaluation.benchmark import Benchmark
from m2pt_cli.evaluation.blocks import score_block
from m2pt_cli.evaluation.events import Events, Notice
from m2pt_cli.evaluation.folder import EvaluationFolder
from m2pt_cli.evaluation.results import EvalResult, EvalRun
from m2pt_cli.evaluation.sample_log import read_predictions
from m2pt_cli.settings import EvalSettings
from m2pt_cli.version import library_versions


def rescore(settings: EvalSettings, bench: Benchmark, *, events: Events) -> EvalResult:
    """Mark and score the rows of ``--predictions``; written only where ``--output-dir`` is named.

    Raises:
        InputError: a file that can't be read, or rows that are not of this benchmark.
        SettingsError: an output directory that is not empty.
    """
    file = Path(settings.predictions or "")
    unused = [name for name in ("base", "adapter", "source", "shuffle_images") if getattr(settings, name)]
    if unused:
        flag = "--" + unused[0].replace("_", "-")
        raise SettingsError(f"{flag} means nothing beside --predictions: no question is asked", f"leave {flag} out")
    rows = read_predictions(file)[: settings.limit]
    try:
        marked = [row if row.failed else row.marked(bench.mark(row, settings.protocol)) for row in rows]
        block = score_block(bench, marked, settings.protocol)
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"{file} does not hold answers to {bench.name}: {error}", "name the benchmark that was asked with --bench"
        ) from None
    for note in block["notes"]:
        events(Notice(note, is_warning=True))
    run = EvalRun(
        name=file.stem,
        base=None,
        adapter=None,
        benchmarks={bench.name: block},
        settings={"predictions": str(file), "protocol": settings.protocol, "limit": settings.limit},
        versions=library_versions(),
        seconds=0.0,
    )
    if settings.output_dir is not None:
        folder = EvaluationFolder(settings.output_dir)
        folder.claim({"base": None, "adapter": None, **run.settings}, overwrite=settings.overwrite)
        folder.create()
        folder.write_predictions(bench.name, marked)
        folder.write_results(run.to_dict())
    return EvalResult((run,), settings.output_dir, rows={run.name: {bench.name: marked}})
