"""The interface of a benchmark (`Task`), its examples and predictions, and the predictions file."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from m2pt_cli.data.sample import ImageReference
from m2pt_cli.errors import InputError
from m2pt_cli.files.io import write_text

# Required keys of a line in a predictions file; the others have defaults.
_REQUIRED = ("question_id", "question", "answer", "prediction")


@dataclass(frozen=True)
class Example:
    """One question of a benchmark.

    Attributes:
        id: unique in its benchmark, ``<question_id>#<n>``.
        question_id: the data set's id; the two questions of an MME image share it.
        category: a task, split or relation, for which a score of its own is computed; None if there is none.
        image: the image that the question is about; None for a text-only question.
        question: the text of the user turn, with the answer format request, without chat template and image token.
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
class Score:
    """The parsed answer of a prediction (None if it can't be parsed); whether it is right, or a score from 0 to 1."""

    parsed: str | None
    correct: bool | float


@dataclass(frozen=True)
class Prediction:
    """One line of ``predictions-<bench>.jsonl``.

    A failed question has an ``error`` and no prediction. Its ``correct`` is None, because it does not count as wrong.
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
    def of(cls, item: Example, prediction: str | None, error: str | None = None) -> Self:
        """Return the unscored prediction of an answered or failed question."""
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

    def marked(self, mark: Score) -> Self:
        """Return this prediction with its score; a failed one has none."""
        if self.error is not None:
            return dataclasses.replace(self, parsed=None, correct=None)
        return dataclasses.replace(self, parsed=mark.parsed, correct=mark.correct)

    @property
    def failed(self) -> bool:
        return self.error is not None


def unique_ids(question_ids: Iterable[str]) -> list[str]:
    """Return ``<question_id>#<n>`` for each question, with n counted from 0 per question id."""
    seen: dict[str, int] = {}
    ids = []
    for question_id in question_ids:
        number = seen.get(question_id, 0)
        seen[question_id] = number + 1
        ids.append(f"{question_id}#{number}")
    return ids


def answered(rows: Sequence[Prediction]) -> list[Prediction]:
    """Return the predictions that did not fail."""
    return [row for row in rows if not row.failed]


def write_predictions(file: Path, rows: Iterable[Prediction]) -> None:
    """Write predictions as JSONL, atomically."""
    lines = [json.dumps(dataclasses.asdict(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    write_text(file, "".join(lines))


def read_rows(file: Path) -> list[Prediction]:
    """Read a predictions file: this tool's, or any JSONL with question_id, question, answer, prediction.

    Raises:
        InputError: the file is missing, unreadable or empty, or lines are invalid; the message lists 20 of them at
            most.
    """
    return list(rows_by_place(file).values())


def rows_by_place(file: Path) -> dict[str, Prediction]:
    """What `read_rows` gives, by the place in the file: ``line 3``, or ``object 3`` of one JSON array."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{file} can't be read: {getattr(error, 'strerror', None) or error}", "check the path"
        ) from None
    records: dict[str, dict[str, Any]] = {}
    faults = []
    for place, member in _members(text):
        record, fault = _record(member)
        if fault is None:
            records[place] = record
        else:
            faults.append(f"{place} {fault}")
    if faults:
        shown = "; ".join(faults[:20]) + (f"; and {len(faults) - 20} more" if len(faults) > 20 else "")
        raise InputError(
            f"{file} holds {len(faults)} bad lines: {shown}",
            'each line is {"question_id", "category", "question", "answer", "prediction"}',
        )
    if not records:
        raise InputError(f"{file} holds no rows", "each line is one JSON object with a prediction")
    given = [record.get("id") for record in records.values()]
    ids = unique_ids(str(record["question_id"]) for record in records.values())
    if None not in given and len({str(identity) for identity in given}) == len(given):
        ids = [str(identity) for identity in given]
    return {
        place: _prediction(record, identity) for (place, record), identity in zip(records.items(), ids, strict=True)
    }


def _members(text: str) -> list[tuple[str, str | Any]]:
    """The lines of a file that are not empty, as texts, or the members of its one JSON array, each with its place."""
    if text.lstrip().startswith("["):
        try:
            return [(f"object {number}", member) for number, member in enumerate(json.loads(text), start=1)]
        except (json.JSONDecodeError, RecursionError):
            pass  # lines, the first of which is no object
    lines = enumerate(text.split("\n"), start=1)
    return [(f"line {number}", line) for number, line in lines if line.strip()]


def _record(line: str | Any) -> tuple[dict[str, Any], str | None]:
    try:
        record = json.loads(line) if isinstance(line, str) else line
    except (json.JSONDecodeError, RecursionError):
        return {}, "is not valid JSON"
    if not isinstance(record, dict):
        return {}, "is not a JSON object"
    missing = [key for key in _REQUIRED if key not in record]
    if missing:
        return {}, f"has no {', '.join(missing)}"
    answer = record["answer"]
    if not isinstance(answer, str) and not (isinstance(answer, list) and all(isinstance(a, str) for a in answer)):
        return {}, f"has the answer {str(answer)[:40]!r}: a text or a list of texts was expected"
    if not isinstance(record["prediction"], str) and not record.get("error"):
        return {}, "has a prediction that is not text, and no error"
    return record, None


def _prediction(record: dict[str, Any], identity: str) -> Prediction:
    category, image, error = record.get("category"), record.get("image"), record.get("error")
    return Prediction(
        id=identity,
        question_id=str(record["question_id"]),
        category=None if category is None else str(category),
        image=None if image is None else str(image),
        question=str(record["question"]),
        answer=record["answer"],
        prediction=None if error else record["prediction"],
        parsed=record["parsed"] if isinstance(record.get("parsed"), str) else None,
        correct=record["correct"] if _is_score(record.get("correct")) else None,
        error=str(error) if error else None,
    )


def _is_score(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) and math.isfinite(value)


# The answer format request of LLaVA-1.5, appended to a question (wording "m2pt-1").
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."


@dataclass(frozen=True)
class TaskOptions:
    """Options for loading a benchmark's questions.

    Attributes:
        limit: number of questions, from the first; None for all.
        wording: ``m2pt-1``, or ``stored`` for the exact question text of the data set.
        source: a Hub id or a folder instead of the benchmark's own source.
        images: folders with images, for benchmarks whose data set contains only their names.
        allow_url: download images that are given by an http(s) URL.
        ocr: add the data set's OCR tokens to the question.
        report: called with messages to the user, such as the size of a download before it starts.
    """

    limit: int | None = None
    wording: str = "m2pt-1"
    source: str | None = None
    images: tuple[Path, ...] = ()
    allow_url: bool = False
    ocr: bool = False
    report: Callable[[str], None] = lambda _: None

    def says_nothing_is_stored(self, bench: str) -> None:
        """Report, if ``--wording stored`` was given, that the data set has no question texts and it changes nothing."""
        if self.wording == "stored":
            self.report(f"the data set of {bench} stores no questions: --wording stored changes nothing")


class Task(Protocol):
    """One benchmark. Loading and scoring need no model and no torch.

    Attributes:
        name: its name in ``--bench``.
        source: where its questions come from, for display: a Hub id, or "built in".
        patterns: globs of its files on the Hub; empty if its data is not on the Hub.
        size: number of questions, if it is fixed.
        max_new_tokens: limit of an answer's length.
        headline: the key of its main score.
        has_protocols: whether it supports ``--protocol``.
    """

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def patterns(self) -> tuple[str, ...]: ...
    @property
    def size(self) -> int | None: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def headline(self) -> str: ...
    @property
    def has_protocols(self) -> bool: ...

    def items(self, request: TaskOptions) -> list[Example]:
        """Load the questions in the data set's order.

        Raises:
            UnavailableError: the data set is not available.
            InputError: it can't be read, or columns are missing or invalid.
        """

    def reference(self, row: Prediction) -> str | list[str]:
        """The reference of a row that was made elsewhere, in the form that `items` gives it.

        Raises:
            ValueError: the row is not of this benchmark: its reference is none of its answers, or its category none
                of its categories. The text says what was expected.
        """

    def mark(self, row: Prediction, protocol: str) -> Score:
        """Parse and score one prediction."""

    def scores(self, rows: Sequence[Prediction], protocol: str) -> dict[str, Any]:
        """Compute the benchmark's results for ``results.json`` from scored predictions; ignores failed ones."""
