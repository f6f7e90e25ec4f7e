"""Reading the answers to demo questions, by rules alone, and what guessing would score."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from m2pt_cli.data.demo_families import FAMILIES, THREE_WAY
from m2pt_cli.data.samples import ImageReference
from m2pt_cli.data.scene_words import BACKGROUNDS, COLORS, NUMBERS, PLACES, SHAPES, SIZES

# What can be true of an attribute: the words that its answers are read for.
VALUES: dict[str, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "shape": SHAPES,
    "size": SIZES,
    "place": PLACES,
    "content": SHAPES,
    "object": SHAPES,
    "presence": ("present", "absent"),
    "relation": ("left", "right", "above", "below"),
    "count": NUMBERS,
    "equality": ("yes", "no"),
    "ground": tuple(BACKGROUNDS),
    "digit": NUMBERS,
    "parity": ("odd", "even"),
    "ink": tuple(COLORS),
}
VERDICTS = {"yes/no": ("yes", "no"), "true/false": ("true", "false"), "three-way": THREE_WAY}
_EDGES = re.compile(r"^[\W_]+|[\W_]+$")
_ARTICLE = re.compile(r"^(?:a|an|the)\s+")


@dataclass(frozen=True)
class DemoQuestion:
    """One question of the demo evaluation.

    Attributes:
        question_id: unique, but shared by the two questions of an MME-like pair.
        family: a key of ``FAMILIES``.
        answer: the reference as a model should say it.
        choices: the values offered, where the format is "choice".
        absence: how the thing asked for was chosen, where it is not there: random, popular or adversarial.
    """

    question_id: str
    family: str
    image: ImageReference
    question: str
    answer: str
    choices: tuple[str, ...] = ()
    absence: str = ""

    @property
    def seen(self) -> bool:
        """Whether its family is trained on."""
        return FAMILIES[self.family].seen


def parse_demo_answer(family: str, text: str) -> str | None:
    """The value that an answer names, or None where it has not the form that was asked for.

    A sentence must have at least four words, a verb (is, are) and exactly one value of the attribute. Every other
    format must be the bare value: case, an article, punctuation at the ends and numerals for number words are
    forgiven, anything beside it is not.
    """
    entry = FAMILIES[family]
    values = VERDICTS.get(entry.format) or VALUES[entry.attribute]
    said = " ".join(text.lower().split())
    if entry.format == "sentence":
        words = re.findall(r"\w+", said)
        found = {_number(word) for word in words} & set(values)
        is_sentence = len(words) >= 4 and ("is" in words or "are" in words)
        return found.pop() if is_sentence and len(found) == 1 else None
    bare = _number(_ARTICLE.sub("", _EDGES.sub("", said)))
    return bare if bare in values else None


def _number(word: str) -> str:
    return NUMBERS[int(word)] if word.isascii() and word.isdigit() and len(word) == 1 else word


def demo_answer_is_right(family: str, answer: str, prediction: str) -> bool:
    """Whether a prediction names the value that the reference answer names."""
    parsed = parse_demo_answer(family, prediction)
    return parsed is not None and parsed == parse_demo_answer(family, answer)


def majority_guess(questions: Iterable[DemoQuestion]) -> dict[str, float]:
    """What guessing scores per family: always the commonest answer, or any of the choices, whichever is more."""
    groups: dict[str, list[DemoQuestion]] = {}
    for question in questions:
        groups.setdefault(question.family, []).append(question)
    scores = {}
    for family, group in groups.items():
        answers = Counter(parse_demo_answer(family, question.answer) for question in group)
        constant = max(answers.values()) / len(group)
        guessing = sum(1 / len(question.choices) if question.choices else 0.0 for question in group) / len(group)
        scores[family] = max(constant, guessing)
    return scores
