"""Parsing yes and no in free-form answers."""

from __future__ import annotations

import pytest
from fixtures.scored import assert_close, expected

from m2pt_cli.evaluation.answer_parsing import exact_class, first_yes_or_no, match_class, normalise, soft_accuracy
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
        # in other words
        ("yep", "yes"),
        ("Nope.", "no"),
        ("**Yes**", "yes"),
        ("_No_", "no"),
        ("Ｙｅｓ", "yes"),
        ("(y)", "yes"),
        ("not really", "no"),
        ("not at all", "no"),
        ("isn’t", "no"),
        ("I cannot see a dog", "no"),
        ("There are none", "no"),
        ("I don't think so", "no"),
        ("It disagrees", "no"),
        ("The image agrees", "yes"),
        ("Yes, there isn't", "yes"),
        ("No, there is no dog", "no"),
        # the words around the answer
        ("The answer is yes", "yes"),
        ("The correct answer is no", "no"),
        ("That's right.", "yes"),
        ("The cat is right of the dog", None),
        ("Answer yes or no.", None),
        ("yes/no", None),
        # denied denials, and assent
        ("not false", "yes"),
        ("It isn't wrong", "yes"),
        ("not true", "no"),
        ("Certainly", "yes"),
        ("certainly not", "no"),
        ("Of course!", "yes"),
        ("of course not", "no"),
        ("No doubt", "yes"),
        # neither
        ("not sure", None),
        ("I can't tell", None),
        ("I don't know", None),
        ("unclear", None),
        ("I am not certain, but yes", "yes"),
        ("No, but it is not clear", "no"),
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
        ("I can see a lion", "lion"),
        ("It's a can.", "can"),
        ("The image can't be read", None),
        ("an orange butterfly", "butterfly"),
        ("a sea turtle", "turtle"),
        ("apple, orange", "apple"),
        ("not a lion but a tiger", "tiger"),
        ("It isn't a lion", None),
        ("**aquarium_fish**", "aquarium_fish"),
        ("an aquarium-fish", "aquarium_fish"),
        ("", None),
    ],
)
def test_plurals_joined_words_and_strangers(answer: str, name: str | None) -> None:
    assert match_class(answer, CIFAR100_NAMES) == name


def test_a_reference_is_a_name_and_nothing_else() -> None:
    assert exact_class("Lawn Mower.", CIFAR100_NAMES) == "lawn_mower"
    assert (
        exact_class("a dog", CIFAR10_NAMES) is exact_class("", CIFAR10_NAMES) is exact_class("3", CIFAR10_NAMES) is None
    )
