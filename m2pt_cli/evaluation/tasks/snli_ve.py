"""SNLI-VE: does an image entail a statement, contradict it, or neither? (Xie et al. 2019, arXiv 1901.06706)"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from m2pt_cli.evaluation import validators
from m2pt_cli.evaluation.answer_parsing import first_yes_or_no
from m2pt_cli.evaluation.datasets import SharedImages, Table
from m2pt_cli.evaluation.metrics import accuracy_by_category
from m2pt_cli.evaluation.task import Example, Prediction, Score, TaskOptions, answered

LABELS = ("entailment", "neutral", "contradiction")
_LABEL_OF_YES_NO = {"yes": "entailment", "no": "contradiction", None: None}
_UNSURE = re.compile(
    r"\b(not sure|unsure|uncertain|maybe|perhaps|possibly|neutral|unclear|undetermined"
    r"|(can't|can ?not|could not|couldn't|hard to|impossible to|not possible to) (tell|say|know|determine))\b",
    re.IGNORECASE,
)
_LABEL_NAME = re.compile(r"\b(entail|contradict)", re.IGNORECASE)


def read_label(answer: str) -> str | None:
    """Return ``entailment``, ``neutral`` or ``contradiction`` for yes, not sure, no (or the label's name), or None."""
    if _UNSURE.search(answer):
        return "neutral"
    label = _LABEL_OF_YES_NO[first_yes_or_no(answer)]
    named = _LABEL_NAME.search(answer)
    if label is None and named is not None:
        return "entailment" if named.group().lower() == "entail" else "contradiction"
    return label


class SNLIVE:
    """Accuracy over three labels, and the confusion matrix (reference by answer)."""

    name = "snli-ve"
    source = "sedrickkeh/snli-ve"
    size = 17_901
    max_new_tokens = 8
    headline = "accuracy"
    has_protocols = False
    table = Table(
        "sedrickkeh/snli-ve",
        ("data/test-*.parquet",),
        ("image", "hypothesis", "label"),
        optional=("filename",),
        checks={"hypothesis": validators.text, "label": validators.one_of(*LABELS, 0, 1, 2)},
    )
    patterns = table.patterns

    def items(self, request: TaskOptions) -> list[Example]:
        rows = self.table.rows(request)
        images = SharedImages()
        return [
            Example(
                id=f"{number}#0",
                question_id=str(number),
                category=None,
                image=images.one(str(row.get("filename") or row["image"].name), row["image"]),
                question=_ask(str(row["hypothesis"]), request.wording),
                answer=_label(row["label"]),
            )
            for number, row in enumerate(rows)
        ]

    def mark(self, row: Prediction, protocol: str) -> Score:
        parsed = read_label(row.prediction or "")
        return Score(parsed, parsed == row.answer)

    def scores(self, rows: Sequence[Prediction], protocol: str) -> dict[str, Any]:
        pairs = Counter((row.answer, row.parsed or "unparsed") for row in answered(rows))
        confusion = {label: {other: pairs[label, other] for other in (*LABELS, "unparsed")} for label in LABELS}
        return {**accuracy_by_category(rows, None), "confusion": confusion}


def _label(label: str | int) -> str:
    # A file without class names has numbers, in the label order of the Hub's copies.
    return label if isinstance(label, str) else LABELS[label]


def _ask(hypothesis: str, wording: str) -> str:
    if wording == "stored":
        return hypothesis
    return f'Does the image support this statement: "{hypothesis}"?\nAnswer yes, no or not sure.'


BENCHMARK = SNLIVE()
