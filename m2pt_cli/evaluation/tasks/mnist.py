"""MNIST: classify a handwritten digit (LeCun et al. 1998)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from m2pt_cli.evaluation import validators
from m2pt_cli.evaluation.datasets import Table
from m2pt_cli.evaluation.metrics import accuracy_by_category
from m2pt_cli.evaluation.references import read_reference
from m2pt_cli.evaluation.task import Example, Prediction, Score, TaskOptions

_QUESTION = "Which digit is shown in this image?\nAnswer with a single digit."
_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_TENS = "twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
_WORD = re.compile(rf"\b(?:({_TENS})[ -]?)?({'|'.join(_WORDS)})(?:e?s)?\b", re.IGNORECASE)
# "This one is a seven", "one digit: seven": words about the picture, and no digit in it.
_NOT_THE_DIGIT = re.compile(
    r"\b(?:this|that|which|each|no|any|every) one\b|\b(?:one|1) (?:digit|number|numeral|image)s?\b|\bone of\b",
    re.IGNORECASE,
)


def read_digit(answer: str) -> str | None:
    """Return the digit in an answer: the first number, else the first number word; None if there is none.

    Numbers take precedence over words: in "This one is a 7" the digit is 7. A number of several digits gives None.
    """
    text = _NOT_THE_DIGIT.sub(" ", " ".join(answer.replace("_", " ").split()))
    number = _NUMBER.search(text)
    if number is not None:
        whole, _, fraction = number.group().partition(".")
        return str(int(whole)) if len(whole) == 1 and not fraction.strip("0") else None
    word = _WORD.search(text)
    return None if word is None or word[1] else str(_WORDS.index(word[2].lower()))


def _exact_digit(text: str) -> str | None:
    """The digit where a text is nothing else: ``7``, ``7.`` or ``seven``."""
    word = text.strip().rstrip(".").lower()
    if word in _WORDS:
        return str(_WORDS.index(word))
    return word if len(word) == 1 and word.isascii() and word.isdigit() else None


class MNIST:
    """Top-1 accuracy on the test split."""

    name = "mnist"
    source = "ylecun/mnist"
    size = 10_000
    max_new_tokens = 8
    headline = "accuracy"
    has_protocols = False
    table = Table(
        "ylecun/mnist",
        ("mnist/test-*.parquet",),
        ("image", "label"),
        label_names=False,
        checks={"label": validators.label(10)},
        classes={"label": tuple("0123456789")},
    )
    patterns = table.patterns

    def items(self, request: TaskOptions) -> list[Example]:
        request.says_nothing_is_stored(self.name)
        return [
            Example(
                id=f"{number}#0",
                question_id=str(number),
                category=str(row["label"]),
                image=row["image"],
                question=_QUESTION,
                answer=str(row["label"]),
            )
            for number, row in enumerate(self.table.rows(request))
        ]

    def reference(self, row: Prediction) -> str:
        return read_reference(row, _exact_digit, "a digit")

    def mark(self, row: Prediction, protocol: str) -> Score:
        parsed = read_digit(row.prediction or "")
        return Score(parsed, parsed == row.answer)

    def scores(self, rows: Sequence[Prediction], protocol: str) -> dict[str, Any]:
        return accuracy_by_category(rows, "classes")


BENCHMARK = MNIST()
