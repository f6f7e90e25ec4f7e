"""The user's own benchmark: a file of questions with answers."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m2pt_cli.data.sample import IMAGE_MARK
from m2pt_cli.errors import InputError
from m2pt_cli.evaluation import validators
from m2pt_cli.evaluation.datasets import read_json_objects
from m2pt_cli.evaluation.images import BenchmarkImages
from m2pt_cli.evaluation.metrics import accuracy_by_category, mean
from m2pt_cli.evaluation.task import Example, Prediction, Score, TaskOptions, answered, unique_ids

_WORD = re.compile(r"\w+", re.UNICODE)
_ARTICLES = frozenset(("a", "an", "the"))
_VALIDATORS: dict[str, validators.Check] = {
    "image": validators.text,
    "question": validators.text,
    "answer": validators.answer,
}


class OwnBenchmark:
    """A benchmark from a file or folder of questions, each about one image, with answers.

    The data is JSONL (or a JSON array) of ``{"image", "question", "answer"}``, where ``answer`` is a text or a list of
    accepted ones, and ``id`` and ``category`` are optional. It may also be in any format of ``m2pt train --data``
    (LLaVA JSON, messages): the first two turns of each sample are the question and its answer. Images are searched in
    ``--images``, else in the file's folder.

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
        """Return whether the first object of the file is a question, and not a training conversation."""
        suffix = self.path.suffix.lower()
        if suffix not in (".json", ".jsonl"):
            return False
        try:
            text = self.path.read_text(encoding="utf-8-sig").lstrip()
            first, _ = json.JSONDecoder().raw_decode(text.removeprefix("[").lstrip())
        except (OSError, ValueError, RecursionError):
            return suffix == ".jsonl"  # `read_json_objects` reports its invalid lines
        if not isinstance(first, dict):
            return suffix == ".jsonl"
        return not {"messages", "conversations"} & first.keys()

    def _question_lines(self, request: TaskOptions) -> list[Example]:
        folders = BenchmarkImages(request.images or (self.path.parent,), request.allow_url, needed_by=self.name)
        rows = read_json_objects(self.path, _VALIDATORS)[: request.limit]
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

    def mark(self, row: Prediction, protocol: str) -> Score:
        parsed = _normalise(row.prediction or "")
        return Score(parsed, parsed in {_normalise(answer) for answer in _answers(row)})

    def scores(self, rows: Sequence[Prediction], protocol: str) -> dict[str, Any]:
        """Compute accuracy (normalised match), exact match, containment and token F1, each for the best answer."""
        good = answered(rows)
        has_categories = any(row.category is not None for row in good)
        return {
            **accuracy_by_category(rows, "categories" if has_categories else None),
            "exact": mean(float((row.prediction or "").strip() in _answers(row)) for row in good),
            "contains": mean(float(_contains(row)) for row in good),
            "token_f1": mean(max(token_f1(row.prediction or "", answer) for answer in _answers(row)) for row in good),
        }


def token_f1(prediction: str, answer: str) -> float:
    """Return the harmonic mean of token precision and recall of two normalised texts, as in SQuAD."""
    predicted, reference = Counter(_normalise(prediction).split()), Counter(_normalise(answer).split())
    if not predicted or not reference:
        return float(predicted == reference)
    common = sum((predicted & reference).values())
    return 2 * common / (predicted.total() + reference.total())


def _contains(row: Prediction) -> bool:
    prediction = f" {_normalise(row.prediction or '')} "
    return any(f" {words} " in prediction for answer in _answers(row) if (words := _normalise(answer)))


def _normalise(text: str) -> str:
    """Normalise a text: lower case, words only, no articles."""
    return " ".join(word for word in _WORD.findall(text.lower()) if word not in _ARTICLES)


def _answers(row: Prediction) -> list[str]:
    return [row.answer] if isinstance(row.answer, str) else row.answer or [""]
