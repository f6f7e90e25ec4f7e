"""Parsing yes and no in free-form answers."""

from __future__ import annotations

import pytest
from fixtures.scored import assert_close, expected

from m2pt_cli.evaluation.answer_parsing import first_yes_or_no, match_class, normalise, soft_accuracy
from m2pt_cli.evaluation.tasks.cifar import CIFAR10_NAMES, CIFAR100_NAMES


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Yes", "yes"),
        ("  no.", "no"),
        ("Y", "yes"),
        ("n.", "no"),
        ("No, yes is wrong", "no"),
        ("It does not agree", "no"),
        ("The dog isn't there.", "no"),
        ("True", "yes"),
        ("That is incorrect", "no"),
        ("I know nothing", None),
        ("yesterday", None),
        ("", None),
        ("是", None),
    ],
)
def test_the_first_word_that_says_it_decides(answer: str, said: str | None) -> None:
    assert first_yes_or_no(answer) == said


def test_normalisation_agrees_with_the_reference() -> None:
    reference = expected("textvqa_expected.json")["normalise"]
    assert {answer: normalise(answer) for answer in reference} == reference


def test_soft_accuracy_agrees_with_the_reference() -> None:
    reference = expected("textvqa_expected.json")["soft_accuracy"]
    assert len(reference) >= 6
    for case in reference:
        assert_close(soft_accuracy(case["prediction"], case["answers"]), case["exact_match"])


@pytest.mark.parametrize(("matches", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_soft_accuracy_by_number_of_matches(matches: int, score: float) -> None:
    answers = ["a word"] * matches + [f"other {n}" for n in range(10 - matches)]
    assert soft_accuracy("Word", answers) == pytest.approx(score)


def test_soft_accuracy_without_answers_is_zero() -> None:
    assert soft_accuracy("x", []) == 0.0


@pytest.mark.parametrize("names", [CIFAR10_NAMES, CIFAR100_NAMES])
def test_every_name_matches_itself_however_it_is_written(names: tuple[str, ...]) -> None:
    assert len(set(names)) == len(names) in (10, 100)
    for name in names:
        words = name.replace("_", " ")
        article = "an" if words[0] in "aeiou" else "a"
        for answer in (
            name,
            words,
            words.upper(),
            f"{article} {words}.",
            f"It is {article} {words}, I think",
            words + "s",
        ):
            assert match_class(answer, names) == name, answer


def test_the_longest_name_wins_and_then_the_first_one() -> None:
    names = ("palm", "palm_tree", "tree")
    assert match_class("a palm tree", names) == "palm_tree"
    assert match_class("a tree, perhaps a palm", names) == "tree"


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("two men", "man"),
        ("butterflies", "butterfly"),
        ("Foxes!", "fox"),
        ("a lawnmower", "lawn_mower"),
        ("pickup truck", "pickup_truck"),
        ("A woman with a man", "woman"),
        ("mice", "mouse"),
        ("a submarine", None),
        ("manatee", None),
        ("", None),
    ],
)
def test_plurals_joined_words_and_strangers(answer: str, name: str | None) -> None:
    assert match_class(answer, CIFAR100_NAMES) == name
