"""TextVQA: questions about text in images, scored by VQA accuracy with ten annotators (Singh et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from m2pt_cli.evaluation import validators
from m2pt_cli.evaluation.answer_parsing import normalise, soft_accuracy
from m2pt_cli.evaluation.datasets import SharedImages, Table
from m2pt_cli.evaluation.metrics import accuracy
from m2pt_cli.evaluation.task import SHORT_ANSWER, Example, Prediction, Score, TaskOptions, unique_ids


class TextVQA:
    """The validation split. ``--ocr`` adds the data set's OCR tokens to the question, an option of LLaVA-1.5."""

    name = "textvqa"
    source = "lmms-lab/textvqa"
    size = 5000
    max_new_tokens = 32
    headline = "accuracy"
    has_protocols = False
    table = Table(
        "lmms-lab/textvqa",
        ("data/validation-*.parquet",),
        ("image_id", "question_id", "question", "image", "answers"),
        checks={
            "image_id": validators.identifier,
            "question_id": validators.identifier,
            "question": validators.text,
            "answers": validators.annotators,
            "ocr_tokens": validators.tokens,
        },
    )
    patterns = table.patterns

    def items(self, request: TaskOptions) -> list[Example]:
        table = self.table.with_columns("ocr_tokens") if request.ocr else self.table
        rows = table.rows(request)
        images = SharedImages()
        ids = unique_ids(str(row["question_id"]) for row in rows)
        return [
            Example(
                id=identity,
                question_id=str(row["question_id"]),
                category=None,
                image=images.one(str(row["image_id"]), row["image"]),
                question=_ask(row, request),
                answer=[str(answer) for answer in row["answers"]],
            )
            for identity, row in zip(ids, rows, strict=True)
        ]

    def reference(self, row: Prediction) -> list[str]:
        wanted = validators.annotators(row.answer)
        if wanted is not None or isinstance(row.answer, str):
            raise ValueError(f"answer is {validators.shown(row.answer)}, {wanted} was expected")
        return row.answer

    def mark(self, row: Prediction, protocol: str) -> Score:
        answers = [row.answer] if isinstance(row.answer, str) else row.answer
        prediction = row.prediction or ""
        return Score(normalise(prediction), soft_accuracy(prediction, answers))

    def scores(self, rows: Sequence[Prediction], protocol: str) -> dict[str, Any]:
        total = accuracy(rows)
        return {"accuracy": total["accuracy"], "interval": total["interval"]}


def _ask(row: dict[str, Any], request: TaskOptions) -> str:
    question = str(row["question"])
    if request.ocr:
        question += f"\nReference OCR token: {', '.join(row['ocr_tokens'])}"
    return question if request.wording == "stored" else question + SHORT_ANSWER


BENCHMARK = TextVQA()
