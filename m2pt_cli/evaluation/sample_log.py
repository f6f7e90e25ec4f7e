"""Predictions made elsewhere: this tool's rows, plain JSONL, or the sample log of lmms-eval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from m2pt_cli.errors import InputError
from m2pt_cli.evaluation.rows import Row, read_rows, unique_ids


def read_predictions(file: Path) -> list[Row]:
    """Rows of a predictions file, whichever of the three kinds it is.

    Raises:
        InputError: the file can't be read, or holds lines of no such kind.
    """
    samples = _samples(file)
    if samples is None:
        return read_rows(file)
    rows = [_row(sample, number, file) for number, sample in enumerate(samples, start=1)]
    ids = unique_ids(row["question_id"] for row in rows)
    return [Row(id=identity, image=None, **row) for identity, row in zip(ids, rows, strict=True)]


def _samples(file: Path) -> list[dict[str, Any]] | None:
    """The samples of an lmms-eval log (JSONL, or one JSON object with ``logs``); None if the file is none."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{file} can't be read: {getattr(error, 'strerror', None) or error}", "check the path"
        ) from None
    lines = [line for line in text.split("\n") if line.strip()]
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
