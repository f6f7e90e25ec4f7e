"""Questions of a benchmark and the rows of answers that every score is computed from."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from m2pt_cli.data.samples import ImageReference
from m2pt_cli.errors import InputError
from m2pt_cli.evaluation.files import write_text

# What a row needs to be scored; the other keys have defaults.
_NEEDED = ("question_id", "question", "answer", "prediction")


@dataclass(frozen=True)
class Item:
    """One question of a benchmark.

    Attributes:
        id: unique in its benchmark, ``<question_id>#<n>``.
        question_id: the data set's own id; the two questions of an MME image share it.
        category: what scores are broken down by: a task, a split, a relation; None where there is none.
        image: the image asked about; None for a question in text alone.
        question: the words put to the model, wording included, without template and image mark.
        answer: the reference: a text, or a list of them.
    """

    id: str
    question_id: str
    category: str | None
    image: ImageReference | None
    question: str
    answer: str | list[str]

    @property
    def image_name(self) -> str | None:
        return None if self.image is None else self.image.name


@dataclass(frozen=True)
class Mark:
    """What was read out of a prediction, and what it is worth: a truth value, or a share from 0 to 1."""

    parsed: str | None
    correct: bool | float


@dataclass(frozen=True)
class Row:
    """One line of ``predictions-<bench>.jsonl``.

    A failed question has an ``error`` and no prediction; its ``correct`` is None: failed is not wrong.
    """

    id: str
    question_id: str
    category: str | None
    image: str | None
    question: str
    answer: str | list[str]
    prediction: str | None
    parsed: str | None = None
    correct: bool | float | None = None
    error: str | None = None

    @classmethod
    def of(cls, item: Item, prediction: str | None, error: str | None = None) -> Self:
        """The row of an answered (or failed) question, not marked yet."""
        return cls(
            id=item.id,
            question_id=item.question_id,
            category=item.category,
            image=item.image_name,
            question=item.question,
            answer=item.answer,
            prediction=prediction,
            error=error,
        )

    def marked(self, mark: Mark) -> Self:
        """This row with its mark; a failed one keeps None."""
        if self.error is not None:
            return dataclasses.replace(self, parsed=None, correct=None)
        return dataclasses.replace(self, parsed=mark.parsed, correct=mark.correct)

    @property
    def failed(self) -> bool:
        return self.error is not None


def unique_ids(question_ids: Iterable[str]) -> list[str]:
    """``<question_id>#<n>`` for each, n counting from 0 within one question id."""
    seen: dict[str, int] = {}
    ids = []
    for question_id in question_ids:
        number = seen.get(question_id, 0)
        seen[question_id] = number + 1
        ids.append(f"{question_id}#{number}")
    return ids


def answered(rows: Sequence[Row]) -> list[Row]:
    """The rows that have a prediction."""
    return [row for row in rows if not row.failed]


def write_rows(file: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSONL, atomically."""
    lines = [json.dumps(dataclasses.asdict(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    write_text(file, "".join(lines))


def read_rows(file: Path) -> list[Row]:
    """Rows of a predictions file: this tool's, or any JSONL with question_id, question, answer, prediction.

    Raises:
        InputError: the file is missing or unreadable, or lines are not such rows; all faults are named at once.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{file} can't be read: {getattr(error, 'strerror', None) or error}", "check the path"
        ) from None
    records, faults = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        record, fault = _record(line)
        if fault is None:
            records.append(record)
        else:
            faults.append(f"line {number} {fault}")
    if faults:
        shown = "; ".join(faults[:20]) + (f"; and {len(faults) - 20} more" if len(faults) > 20 else "")
        raise InputError(
            f"{file} holds {len(faults)} bad lines: {shown}",
            'each line is {"question_id", "category", "question", "answer", "prediction"}',
        )
    if not records:
        raise InputError(f"{file} holds no rows", "each line is one JSON object with a prediction")
    ids = unique_ids(str(record["question_id"]) for record in records)
    return [_row(record, identity) for record, identity in zip(records, ids, strict=True)]


def _record(line: str) -> tuple[dict[str, Any], str | None]:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        return {}, "is not valid JSON"
    if not isinstance(record, dict):
        return {}, "is not a JSON object"
    missing = [key for key in _NEEDED if key not in record]
    if missing:
        return {}, f"has no {', '.join(missing)}"
    answer = record["answer"]
    if not isinstance(answer, str) and not (isinstance(answer, list) and all(isinstance(a, str) for a in answer)):
        return {}, f"has the answer {str(answer)[:40]!r}: a text or a list of texts was expected"
    if not isinstance(record["prediction"], str) and not record.get("error"):
        return {}, "has a prediction that is not text, and no error"
    return record, None


def _row(record: dict[str, Any], identity: str) -> Row:
    category, image, error = record.get("category"), record.get("image"), record.get("error")
    return Row(
        id=str(record.get("id", identity)),
        question_id=str(record["question_id"]),
        category=None if category is None else str(category),
        image=None if image is None else str(image),
        question=str(record["question"]),
        answer=record["answer"],
        prediction=None if error else record["prediction"],
        parsed=record["parsed"] if isinstance(record.get("parsed"), str) else None,
        correct=record["correct"] if _is_mark(record.get("correct")) else None,
        error=str(error) if error else None,
    )


def _is_mark(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) and math.isfinite(value)
