"""What counts when two free answers are compared, and what does not."""

from __future__ import annotations

import random

import pytest

from m2pt_cli.evaluation.normal_form import is_blank, normal_form

_SAME = [
    # case, articles, punctuation at the ends of words
    ("The Cat!", "cat"), ("A cat; the dog.", "cat dog"), ("cat,dog", "cat dog"), ("(a cat)", "cat"), ("a.", "A"),
    ('"the cat"', "cat"), ("“cat”", "cat"), ("cat .", "cat"), ("...cat", "cat"), ("cat…", "cat"), ("**Yes**", "yes"),
    ("the a", "A"), ("the", "The."), ("U.S.", "U.S"), ("Yes,no", "yes no"), ("5!", "5"), ("C++.", "c++"),
    # Unicode form
    ("don’t", "don't"), ("Straße", "STRASSE"), ("ΟΔΟΣ", "οδος"), ("İstanbul", "istanbul"), ("e\u0301", "é"),
    ("ＹＥＳ！", "yes"), ("H₂O", "h2o"), ("x²", "x2"), ("½", "1/2"), ("1½", "1 1/2"), ("\u200bcat\ufeff", "cat"),
    ("❤\ufe0f", "❤"), ("猫。", "猫"), ("「猫」", "猫"), ("नमस्ते।", "नमस्ते"), ("هل؟", "هل"), ("¿Qué?", "qué"),
    # numbers
    (".5", "0.5"), ("5.0", "5"), ("5.", "5"), ("3.14.", "3.14"), ("1,000", "1000"), ("1,000.0,", "1000"),
    ("1,00,000", "100000"), ("1\u202f000", "1000"), ("1'000", "1000"), ("1.000.000", "1000000"), ("1.234,5", "1234.5"),
    ("1.000", "1"), ("−5", "-5"), ("–5", "-5"), ("- 5", "-5"), ("-0.0", "0"), ("５", "5"), ("٣", "3"), ("007", "7"),
    ("$ 5.00", "$5"), ("5 €", "5€"), ("50 %.", "50%"), ("1.50kg", "1.5kg"), ("5 °C", "5°c"),
    ("1,000-2,000", "1000-2000"),
]  # fmt: skip
_DIFFERENT = [
    ("A", ""), ("a", "the"), ("A", "B"), ("Vitamin A", "vitamin"), ("A or B", "or B"), ("Plan A", "Plan B"),
    # symbols and marks
    ("👍", "👎"), ("C++", "C#"), ("C++", "C"), ("$5", "€5"), ("$5", "5"), ("<5", ">5"), ("<5", "5"), ("#1", "1"),
    ("50%", "50"), ("5°", "5"), ("+5", "5"), ("6'", '6"'), ("6'", "6"), (":)", ":("), ("?", "!"), ("♂", "♀"),
    ("🇫🇷", "🇩🇪"),
    ("🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
     "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"),
    ("@home", "home"), ("r&b", "rb"), (".net", "net"), ("x+y", "xy"), ("f(x)", "f x"), ("≥5", "≤5"), ("&", "and"),
    # letters and vowel signs
    ("की", "का"), ("กา", "กี"), ("résumé", "resume"), ("ı", "i"), ("don't", "dont"), ("t-shirt", "t shirt"),
    ("U.S.", "us"),
    # signs, points and colons in numbers
    ("-5", "5"), (".5", "5"), ("1.5", "15"), ("1,5", "15"), ("10:30", "1030"), ("12.00", "12:00"), ("10²", "102"),
    ("½", "12"), ("1½", "11/2"), ("3/4", "34"), ("1:05", "1:5"), ("v1.10", "v1.1"), ("5-3", "53"), ("5 - 3", "5 3"),
    ("192.168.1.1", "19216811"), ("2**3", "23"), ("1.000.000", "1"),
]  # fmt: skip


@pytest.mark.parametrize(("first", "second"), _SAME)
def test_the_same_answer_in_other_words(first: str, second: str) -> None:
    assert normal_form(first) == normal_form(second)


@pytest.mark.parametrize(("first", "second"), _DIFFERENT)
def test_different_answers_stay_different(first: str, second: str) -> None:
    assert normal_form(first) != normal_form(second)


def test_nothing_that_can_be_seen_becomes_nothing() -> None:
    rng = random.Random(5)
    letters = "aA the.,;:!?'\"()[]-+0123456789½²%$#👍…。「」*^— \u200b\u0307İ"
    for _ in range(5000):
        text = "".join(rng.choice(letters) for _ in range(rng.randint(1, 6)))
        assert bool(normal_form(text)) or is_blank(text), repr(text)


@pytest.mark.parametrize("text", ["", " \n", "\u200b", "\ufeff\u00a0", "\u3164"])
def test_what_shows_nothing_is_blank(text: str) -> None:
    assert is_blank(text) and not any(is_blank(text + visible) for visible in ("a", ".", "👍", "\u0301"))
