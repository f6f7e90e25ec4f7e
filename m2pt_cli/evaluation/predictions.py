"""Predictions made elsewhere: read in several formats, and scored without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from m2pt_cli.data.readers import json_lines
from m2pt_cli.errors import InputError, SettingsError
from m2pt_cli.evaluation.events import Events, Notice
from m2pt_cli.evaluation.results import EvalResult, EvalRun, score_task
from m2pt_cli.evaluation.run_dir import EvaluationFolder
from m2pt_cli.evaluation.task import Prediction, Task, read_rows, unique_ids
from m2pt_cli.settings import EvalSettings
from m2pt_cli.version import library_versions


def read_predictions(file: Path) -> list[Prediction]:
    """Rows of a predictions file, whichever of the three kinds it is.

    Raises:
        InputError: the file can't be read, or holds lines of no such kind.
    """
    samples = _samples(file)
    if samples is None:
        return read_rows(file)
    rows = [_row(sample, number, file) for number, sample in enumerate(samples, start=1)]
    ids = unique_ids(row["question_id"] for row in rows)
    return [Prediction(id=identity, image=None, **row) for identity, row in zip(ids, rows, strict=True)]


def _samples(file: Path) -> list[dict[str, Any]] | None:
    """The samples of an lmms-eval log (JSONL, or one JSON object with ``logs``); None if the file is none."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{file} can't be read: {getattr(error, 'strerror', None) or error}", "check the path"
        ) from None
    lines = [line for line in json_lines(text) if line.strip()]
    try:
        first = json.loads(lines[0]) if lines else None
        if _is_sample(first):
            samples = [json.loads(line) for line in lines]
        elif isinstance(whole := json.loads(text), dict) and isinstance(whole.get("logs"), list):
            samples = whole["logs"]
        else:
            return None
    except (json.JSONDecodeError, RecursionError):
        return None
    bad = [
        number
        for number, sample in enumerate(samples, start=1)
        if not (isinstance(sample, dict) and _is_sample(sample))
    ]
    if bad:
        raise InputError(f"{file}: sample {bad[0]} has no answer ({len(bad)} such samples)")
    return samples


def _is_sample(record: Any) -> bool:
    return isinstance(record, dict) and "doc_id" in record and bool({"filtered_resps", "resps"} & record.keys())


def _row(sample: dict[str, Any], number: int, file: Path) -> dict[str, Any]:
    """A sample as a row: newer logs leave the question's record out, its id and category are then in the metrics."""
    doc = sample.get("doc")
    metrics = [value for value in sample.values() if isinstance(value, dict) and "question_id" in value]
    sources = [doc, *metrics] if isinstance(doc, dict) else metrics

    def find(*keys: str) -> Any:
        return next((source[key] for source in sources for key in keys if source.get(key) is not None), None)

    answer = find("answers", "answer", "ground_truth")
    answer = sample.get("target") if answer is None else answer
    answers = [str(one) for one in answer] if isinstance(answer, list) else str(answer)
    prediction = _first_text(sample.get("filtered_resps", sample.get("resps")))
    if answer is None or prediction is None:
        missing = "reference answer" if answer is None else "text among its responses"
        raise InputError(f"{file}: sample {number} has no {missing}")
    category = find("category")
    identity = find("question_id", "id")
    return {
        "question_id": str(sample["doc_id"] if identity is None else identity),
        "category": None if category is None else str(category),
        "question": str(find("question") or sample.get("input") or ""),
        "answer": answers,
        "prediction": prediction,
    }


def _first_text(responses: Any) -> str | None:
    """The first text in lists of lists of responses."""
    while isinstance(responses, list) and responses:
        responses = responses[0]
    return responses if isinstance(responses, str) else None


def rescore(settings: EvalSettings, bench: Task, *, events: Events) -> EvalResult:
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
        block = score_task(bench, marked, settings.protocol)
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
