"""Class names in free answers."""

from __future__ import annotations

import pytest

from m2pt_cli.evaluation.benchmarks.cifar import CIFAR10_NAMES, CIFAR100_NAMES
from m2pt_cli.evaluation.class_names import match_class


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
