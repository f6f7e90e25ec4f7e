"""A user-defined benchmark: a file of questions with answers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m2pt_cli.data.media import one_image, unsupported_marks
from m2pt_cli.data.sample import IMAGE_MARK
from m2pt_cli.data.validation import InvalidRow
from m2pt_cli.errors import InputError
from m2pt_cli.evaluation import validators
from m2pt_cli.evaluation.datasets import read_json_objects
from m2pt_cli.evaluation.images import BenchmarkImages
from m2pt_cli.evaluation.metrics import accuracy_by_category, mean
from m2pt_cli.evaluation.normal_form import is_blank, normal_form
from m2pt_cli.evaluation.task import Example, Prediction, Score, TaskOptions, answered, unique_ids

_LINE: dict[str, validators.Check] = {
    "image": validators.text,
    "question": validators.text,
    "answer": validators.answer,
}


class OwnBenchmark:
    """Questions of a file or folder, each about one image, with answers.

    JSONL (or a JSON array) of ``{"image", "question", "answer"}``: ``answer`` is a text or a list of accepted ones;
    ``id`` and ``category`` are optional. Or whatever ``m2pt train --data`` reads (LLaVA JSON, messages): the first
    exchange of each sample is the question and its answer. Images are looked for in ``--images``, else beside the file.

    Args:
        path: the file or folder.
    """

    has_protocols = False
    max_new_tokens = 64
    headline = "accuracy"
    size = None
    patterns = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.stem
        self.source = str(path)

    def items(self, request: TaskOptions) -> list[Example]:
        items = self._question_lines(request) if self._holds_question_lines() else self._samples(request)
        if not items:
            raise InputError(f"{self.path} holds no questions", 'a line is {"image", "question", "answer"}')
        return items

    def _holds_question_lines(self) -> bool:
        """Whether the first object, of lines or of an array, is a question, and not a conversation."""
        suffix = self.path.suffix.lower()
        if suffix not in (".json", ".jsonl"):
            return False
        try:
            text = self.path.read_text(encoding="utf-8-sig").lstrip()
            first, _ = json.JSONDecoder().raw_decode(text.removeprefix("[").lstrip())
        except (OSError, ValueError, RecursionError):
            return suffix == ".jsonl"  # whose faulty lines are counted
        if not isinstance(first, dict):
            return suffix == ".jsonl"
        return not {"messages", "conversations"} & first.keys()

    def _question_lines(self, request: TaskOptions) -> list[Example]:
        folders = BenchmarkImages(request.images or (self.path.parent,), request.allow_url, needed_by=self.name)
        rows = read_json_objects(self.path, _LINE, prepare=_prepared)[: request.limit]
        names = [str(row.get("id", row.get("question_id", number))) for number, row in enumerate(rows, start=1)]
        return [
            Example(
                id=identity,
                question_id=name,
                category=None if row.get("category") is None else str(row["category"]),
                image=folders.find(str(row["image"]), str(row["image"])),
                question=str(row["question"]),
                answer=[str(one) for one in row["answer"]] if isinstance(row["answer"], list) else str(row["answer"]),
            )
            for identity, name, row in zip(unique_ids(names), names, rows, strict=True)
        ]

    def _samples(self, request: TaskOptions) -> list[Example]:
        from m2pt_cli.data.sources import load_samples

        loaded = load_samples(
            [str(self.path)], images=request.images, allow_url=request.allow_url, report=request.report
        )
        samples = loaded.samples[: request.limit]
        strange = [sample.id for sample in samples if len(sample.images) != 1]
        if strange:
            raise InputError(
                f"{len(strange)} samples of {self.path} are not about one image, the first is {strange[0]}",
                "a benchmark asks about one image at a time",
            )
        blank = [sample.id for sample in samples if is_blank(sample.turns[1].text)]
        if blank:
            raise InputError(
                f"{len(blank)} samples of {self.path} have a blank answer, the first is {blank[0]}",
                "a benchmark needs an answer to compare with",
            )
        return [
            Example(
                id=identity,
                question_id=sample.id,
                category=sample.task,
                image=sample.images[0],
                question=sample.turns[0].text.replace(IMAGE_MARK, "").strip(),
                answer=sample.turns[1].text,
            )
            for identity, sample in zip(unique_ids(sample.id for sample in samples), samples, strict=True)
        ]

    def reference(self, row: Prediction) -> str | list[str]:
        return row.answer

    def mark(self, row: Prediction, protocol: str) -> Score:
        if is_blank(row.prediction or ""):
            return Score(None, False)
        words = normal_form(row.prediction or "")
        return Score(words, words in {normal_form(answer) for answer in _answers(row)})

    def scores(self, rows: Sequence[Prediction], protocol: str) -> dict[str, Any]:
        """Accuracy = normalised match; exact match, contains and token F1 beside it, each the best over the answers."""
        good = answered(rows)
        has_categories = any(row.category is not None for row in good)
        return {
            **accuracy_by_category(rows, "categories" if has_categories else None),
            "exact": mean(float(_is_exact(row)) for row in good),
            "contains": mean(float(_contains(row)) for row in good),
            "token_f1": mean(max(token_f1(row.prediction or "", answer) for answer in _answers(row)) for row in good),
        }


def _prepared(row: dict[str, Any]) -> dict[str, Any]:
    """Put the only image under ``image``. Raises InvalidRow for media and placeholders that would be ignored."""
    image, fault = one_image(row)
    if fault is not None:
        raise InvalidRow(fault)
    question = row.get("question")
    if isinstance(question, str):
        fault = unsupported_marks([question])
        if fault is not None or (marks := question.count(IMAGE_MARK)) > 1:
            raise InvalidRow(fault or f"{marks} {IMAGE_MARK} marks in its question for 1 image")
    return {**row, "image": image} if image is not None else row


def token_f1(prediction: str, answer: str) -> float:
    """The harmonic mean of token precision and recall of two texts in normal form (as SQuAD scores); 0 for none."""
    said, wanted = Counter(normal_form(prediction).split()), Counter(normal_form(answer).split())
    if not said or not wanted:
        return 0.0
    common = sum((said & wanted).values())
    return 2 * common / (said.total() + wanted.total())


def _is_exact(row: Prediction) -> bool:
    said = (row.prediction or "").strip()
    return bool(said) and said in {answer.strip() for answer in _answers(row)}


def _contains(row: Prediction) -> bool:
    said = f" {normal_form(row.prediction or '')} "
    return any(f" {words} " in said for answer in _answers(row) if (words := normal_form(answer)))


def _answers(row: Prediction) -> list[str]:
    return [row.answer] if isinstance(row.answer, str) else row.answer or [""]
