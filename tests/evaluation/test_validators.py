"""Column validators: which values they accept, and how they report others."""

from __future__ import annotations

import math
from typing import Any

import pytest

from m2pt_cli.evaluation import validators

NAN = float("nan")


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (validators.text, ["a", " b\n", "ü"], [None, NAN, 5, "", " \n", ["a"], "half \ud83d of a pair"]),
        (validators.identifier, ["a", 0, 34602], [None, NAN, 1.0, True, "", ["a"]]),
        (validators.texts, [["a"], ["", "b"]], [None, NAN, "yes", [], [None], ["a", 1]]),
        (validators.tokens, [[], ["A", "b"]], [None, "A", [None, "a"]]),
        (validators.answer, ["a", 7, 0.5, ["a", 7], True], [None, NAN, math.inf, {}, [], ["a", None], [["a"]]]),
        (validators.answer, [".", "0", ["the"]], ["", " ", "\u200b", ["a", ""]]),
        (validators.annotators, [["a"] * 10, list("abcdefghij")], ["a", ["a"], ["a"] * 9, ["a"] * 11, [""] * 10, None]),
        (validators.annotators, [["a"] * 10], [["a"] * 9 + [" "], ["a"] * 9 + [1]]),
        (validators.yes_or_no, ["Yes", "no", " NO. "], [None, NAN, "maybe", "", 1, True]),
        (validators.one_of("random", 2), ["random", 2], [None, NAN, "Random", 2.0, True, [2], "2"]),
        (validators.label(10), [0, 9], [None, NAN, -1, 10, 3.0, "3", True]),
    ],
)
def test_checks(check: validators.Check, good: list[Any], bad: list[Any]) -> None:
    assert [value for value in good if check(value) is not None] == []
    assert [value for value in bad if check(value) is None] == []


def test_a_fault_names_the_cell_what_it_holds_and_what_was_expected() -> None:
    checks = {"label": validators.label(10), "question": validators.text, "ocr_tokens": validators.tokens}
    row = {"label": NAN, "question": "What?", "other": None}
    assert validators.faults(row, checks) == ["label is nan, a number from 0 to 9 was expected"]
    (long,) = validators.faults({"ocr_tokens": "\x1b" * 500}, checks)
    assert len(long) < 100 and "\x1b" not in long


def test_many_faults_are_cut_short() -> None:
    assert validators.several(["a", "b"]) == "a; b"
    assert validators.several([str(n) for n in range(25)]).endswith("18; 19; and 5 more")
