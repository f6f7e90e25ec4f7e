"""SNLI-VE: does an image support a statement, contradict it, or neither (Xie et al. 2019, arXiv 1901.06706)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from m2pt_cli.evaluation import validators
from m2pt_cli.evaluation.answer_parsing import first_yes_or_no, sounds_unsure
from m2pt_cli.evaluation.datasets import SharedImages, Table
from m2pt_cli.evaluation.metrics import accuracy_by_category
from m2pt_cli.evaluation.references import read_reference
from m2pt_cli.evaluation.task import Example, Prediction, Score, TaskOptions, answered

LABELS = ("entailment", "neutral", "contradiction")
_OF_YES_NO = {"yes": "entailment", "no": "contradiction", None: None}
# A label by its own name, and whether it is denied.
_NAMED = re.compile(
    r"(?P<denied>(?:\bno|\bnot|n't)(?: (?:a|an|the|any|directly|clearly))? )?\b(?P<stem>entail|contradict|neutral)"
)
# What may be so need not be: undecided, unless the answer says yes or no as well.
_MAY_BE = re.compile(r"\b(?:might|may be|could be|(?<!not )possible|plausible)\b")
_LABEL_OF = {"entail": "entailment", "contradict": "contradiction", "neutral": "neutral"}


def read_label(answer: str) -> str | None:
    """``entailment``, ``neutral`` or ``contradiction`` from yes, no, not sure (or the labels' own words).

    An answer that sounds unsure is neutral, whatever else it says ("No, I am not sure"). A label's own name comes
    before yes and no; "it does not entail" is a no, "no contradiction" none of the three.
    """
    if sounds_unsure(answer):
        return "neutral"
    text = " ".join(answer.replace("’", "'").lower().split())
    found = list(_NAMED.finditer(text))
    named = {_LABEL_OF[match["stem"]] for match in found if not match["denied"]}
    if named:
        return named.pop() if len(named) == 1 else None
    if any(match["stem"] != "entail" for match in found):
        text = _NAMED.sub(" ", text)
    said = first_yes_or_no(text)
    return "neutral" if said is None and _MAY_BE.search(text) else _OF_YES_NO[said]


def _exact_label(value: Any) -> str | None:
    """The label that a cell holds: its name in any case, or its number in the order of the Hub's copies."""
    if isinstance(value, str):
        name = value.strip().rstrip(".").lower()
        return name if name in LABELS else None
    return LABELS[value] if isinstance(value, int) and not isinstance(value, bool) and value in range(3) else None


class SNLIVE:
    """Accuracy over three labels, and the confusion of reference and answer."""

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
        checks={
            "hypothesis": validators.text,
            "label": validators.read_by(_exact_label, f"one of {', '.join(LABELS)}, 0, 1, 2"),
        },
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
                answer=str(_exact_label(row["label"])),
            )
            for number, row in enumerate(rows)
        ]

    def reference(self, row: Prediction) -> str:
        return read_reference(row, _exact_label, f"one of {', '.join(LABELS)}")

    def mark(self, row: Prediction, protocol: str) -> Score:
        parsed = read_label(row.prediction or "")
        return Score(parsed, parsed == row.answer)

    def scores(self, rows: Sequence[Prediction], protocol: str) -> dict[str, Any]:
        pairs = Counter((row.answer, row.parsed or "unparsed") for row in answered(rows))
        confusion = {label: {other: pairs[label, other] for other in (*LABELS, "unparsed")} for label in LABELS}
        return {**accuracy_by_category(rows, None), "confusion": confusion}


def _ask(hypothesis: str, wording: str) -> str:
    if wording == "stored":
        return hypothesis
    return f'Does the image support this statement: "{hypothesis}"?\nAnswer yes, no or not sure.'


BENCHMARK = SNLIVE()
