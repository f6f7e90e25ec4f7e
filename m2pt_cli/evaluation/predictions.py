"""Read predictions made elsewhere, in several formats, and score them without a model."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from m2pt_cli.data.readers import json_lines
from m2pt_cli.errors import InputError, SettingsError
from m2pt_cli.evaluation.events import Events, Notice
from m2pt_cli.evaluation.normal_form import is_blank
from m2pt_cli.evaluation.references import with_references
from m2pt_cli.evaluation.repeats import check_repeats
from m2pt_cli.evaluation.results import EvalResult, EvalRun, score_task
from m2pt_cli.evaluation.run_dir import EvaluationFolder
from m2pt_cli.evaluation.task import Prediction, Task, rows_by_place, unique_ids
from m2pt_cli.settings import EvalSettings
from m2pt_cli.version import library_versions


def read_predictions(file: Path) -> dict[str, Prediction]:
    """Read the rows of a predictions file in any of three formats, by position: ``line 3``, ``sample 3``.

    Raises:
        InputError: the file can't be read, or has lines in none of these formats.
    """
    samples = _samples(file)
    if samples is None:
        return rows_by_place(file)
    _require_one_filter(samples, file)
    targets = {sample["target"] for sample in samples if isinstance(sample.get("target"), str)}
    rows = [_row(sample, number, file, targets) for number, sample in enumerate(samples, start=1)]
    ids = unique_ids(row["question_id"] for row in rows)
    return {
        f"sample {number}": Prediction(id=identity, image=None, **row)
        for number, (identity, row) in enumerate(zip(ids, rows, strict=True), start=1)
    }


def _require_one_filter(samples: Sequence[Mapping[str, Any]], file: Path) -> None:
    """lm-evaluation-harness logs a sample once for each of its filters: each answer would count as often."""
    filters = list(dict.fromkeys(str(sample["filter"]) for sample in samples if "filter" in sample))
    if len(filters) > 1:
        raise InputError(
            f"{file} holds the answers of several filters: {', '.join(filters)}", "keep the samples of one filter"
        )


def _samples(file: Path) -> list[dict[str, Any]] | None:
    """Return the samples of an lmms-eval log (JSONL, or one JSON object with ``logs``); None for other files."""
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


def _row(sample: dict[str, Any], number: int, file: Path, targets: Collection[str]) -> dict[str, Any]:
    """Convert a sample to a row; newer logs lack the question's record, id and category are then in the metrics."""
    doc = sample.get("doc")
    metrics = [value for value in sample.values() if isinstance(value, dict) and "question_id" in value]
    sources = [doc, *metrics] if isinstance(doc, dict) else metrics

    def find(*keys: str) -> Any:
        return next((source[key] for source in sources for key in keys if source.get(key) is not None), None)

    prediction = _first_text(sample.get("filtered_resps", sample.get("resps")))
    if prediction is None:
        raise InputError(f"{file}: sample {number} has no text among its responses")
    try:
        answer = _reference(sample, targets)
    except ValueError as fault:
        raise InputError(
            f"{file}: sample {number} {fault}",
            'references are read from "doc" and "target" alone; if the log has none there, write lines of '
            '{"question_id", "category", "question", "answer", "prediction"}',
        ) from None
    category = find("category")
    identity = find("question_id", "id")
    return {
        "question_id": str(sample["doc_id"] if identity is None else identity),
        "category": None if category is None else str(category),
        "question": str(find("question") or _prompt(sample)),
        "answer": answer,
        "prediction": prediction,
    }


# What data sets call the column of references. A log whose target is such a name was made of data without the column.
_COLUMNS = ("answers", "answer", "ground_truth")
_OTHER_COLUMNS = """
label labels target targets gt gt_answer reference references caption captions correct_answer direct_answers
multiple_choice_answer output response solution text
"""


def _reference(sample: Mapping[str, Any], targets: Collection[str]) -> str | list[str]:
    """Return a sample's reference, only from its question's record or target: other fields may be the model's output.

    Args:
        sample: a sample of a log.
        targets: the targets of all samples that are texts.

    Raises:
        ValueError: there is none, or it is the name of a column, the number of a choice, or no text.
    """
    doc = sample["doc"] if isinstance(sample.get("doc"), dict) else {}
    target = sample.get("target")
    found = next((doc[key] for key in _COLUMNS if not _is_empty(doc.get(key))), target)
    if _is_empty(found):
        raise ValueError("has no reference answer")
    if found is target and isinstance(target, str):
        name = target.strip().strip("{} ")
        is_same_everywhere = len(targets) == 1 and name in _OTHER_COLUMNS.split()
        if name in _COLUMNS or name in doc or is_same_everywhere or "{{" in target:
            raise ValueError(f"has the target {target!r}, the name of a column instead of a reference")
    if isinstance(found, int) and not isinstance(found, bool) and {"choices", "options"} & doc.keys():
        raise ValueError(f"has the number of a choice ({found}) for a reference, and no text")
    if isinstance(found, list):
        return [_text(one) for one in found]
    return _text(found)


def _is_empty(value: Any) -> bool:
    return value is None or value == [] or (isinstance(value, str) and is_blank(value))


def _text(value: Any) -> str:
    """A reference as text; VQA keeps each annotator's in an object."""
    if isinstance(value, dict):
        value = value.get("answer", value.get("text"))
    if not isinstance(value, (str, int, float)) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError("has a reference that is no text")
    return str(value)


def _prompt(sample: Mapping[str, Any]) -> str:
    """What was asked: a text, or the first one in the arguments of the request."""
    asked = sample.get("input") or sample.get("arguments")
    while isinstance(asked, (list, dict)) and asked:
        asked = next(iter(asked.values())) if isinstance(asked, dict) else asked[0]
    return asked if isinstance(asked, str) else ""


def _first_text(responses: Any) -> str | None:
    """The first text in lists of lists of responses."""
    while isinstance(responses, list) and responses:
        responses = responses[0]
    return responses if isinstance(responses, str) else None


def rescore(settings: EvalSettings, bench: Task, *, events: Events) -> EvalResult:
    """Score the rows of ``--predictions``; results are written only if ``--output-dir`` is given.

    Raises:
        InputError: a file that can't be read, or rows that are not of this benchmark.
        SettingsError: an output directory that is not empty.
    """
    file = Path(settings.predictions or "")
    unused = [name for name in ("base", "adapter", "source", "shuffle_images") if getattr(settings, name)]
    if unused:
        flag = "--" + unused[0].replace("_", "-")
        raise SettingsError(f"{flag} means nothing beside --predictions: no question is asked", f"leave {flag} out")
    read = dict(list(read_predictions(file).items())[: settings.limit])
    rows = with_references(bench, read, file)
    repeated = check_repeats(bench, rows, source=str(file), is_data=False)
    if repeated is not None:
        events(Notice(repeated, is_warning=True))
    try:
        marked = [row if row.failed else row.marked(bench.mark(row, settings.protocol)) for row in rows.values()]
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
