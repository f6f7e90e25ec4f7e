"""Answers are read strictly by the form that was asked for."""

from __future__ import annotations

import pytest

from m2pt_cli.data.demo_answers import DemoQuestion, demo_answer_is_right, majority_guess, parse_demo_answer
from m2pt_cli.data.scenes import Scene, SceneImage


@pytest.mark.parametrize(
    ("family", "text", "value"),
    [
        ("color-word", "Red.", "red"),
        ("color-word", "the red circle", None),
        ("color-word", "", None),
        ("color-word", "gray", None),  # a background, not a colour of things
        ("object-word", "a star", "star"),
        ("color-yesno", " YES ", "yes"),
        ("color-yesno", "true", None),
        ("shape-truefalse", "False", "false"),
        ("snli-ve", "Not sure.", "not sure"),
        ("count-number", "2", "two"),
        ("count-number", "two", "two"),
        ("count-number", "22", None),
        ("mnist", "7.", "seven"),
        ("shape-sentence", "the red object is a star.", "star"),
        ("shape-sentence", "star", None),
        ("shape-sentence", "black scene: large red star north.", None),
        ("shape-sentence", "the red object is a star or a circle.", None),
        ("digit-sentence", "This is the digit 5.", "five"),
        ("relation-choice", "left", "left"),
        ("relation-choice", "left of", None),
        ("place-word", "northwest", "northwest"),
    ],
)
def test_reading(family: str, text: str, value: str | None) -> None:
    assert parse_demo_answer(family, text) == value


def test_an_answer_is_right_where_it_names_the_same_value() -> None:
    assert demo_answer_is_right("digit-sentence", "this is the digit five.", "That is a digit: it is 5")
    assert not demo_answer_is_right("digit-sentence", "this is the digit five.", "five")
    assert not demo_answer_is_right("color-yesno", "yes", "no") and not demo_answer_is_right("color-yesno", "yes", "?")


def test_majority_is_the_commonest_answer_or_guessing_among_the_choices() -> None:
    image = SceneImage(Scene("black", digit=1, digit_color="red"), 0)

    def asked(family: str, answers: list[str], choices: tuple[str, ...] = ()) -> list[DemoQuestion]:
        return [DemoQuestion(f"{family}-{n}", family, image, "?", answer, choices) for n, answer in enumerate(answers)]

    scores = majority_guess(
        asked("color-yesno", ["yes", "yes", "no", "yes"])
        + asked("digit-sentence", ["this is the digit one.", "this is the digit two."])
        + asked("cifar", ["star", "cross", "circle", "square"], ("star", "cross"))
    )
    assert scores == {"color-yesno": 0.75, "digit-sentence": 0.5, "cifar": 0.5}
