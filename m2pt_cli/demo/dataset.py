"""The demo data set: training samples, evaluation questions, and how answers are scored."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count

from m2pt_cli.data.sample import IMAGE_MARK, ImageReference, Sample, Turn
from m2pt_cli.demo.questions import (
    DIGIT_ATTRIBUTES,
    FAMILIES,
    FORMATS,
    READINGS,
    RELATIONS,
    SEEN,
    THREE_WAY,
    UNSEEN,
    Family,
    Reading,
    absent_thing,
    wrong_value,
)
from m2pt_cli.demo.render import BACKGROUNDS, COLORS, NUMBERS, PLACES, SHAPES, SIZES, UNSEEN_PROPERTIES
from m2pt_cli.demo.scenes import Scene, SceneImage, Split, describe, draw_digit, draw_scene

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


CAPTION_REQUESTS = ("Describe the image.", "Describe this image.", "Describe the picture.")
CAPTION_SHARE = 0.12  # of training: what the base can do already is kept in use
DEFAULT_TRAIN_COUNT = 19_200  # 300 steps of 64: what nano trains on by default
EVAL_COUNT = 2000  # of each kind
EVAL_SEED = 20_24
_QUESTIONS_PER_IMAGE = 3
_POPE_KINDS = ("random", "popular", "adversarial")


@dataclass(frozen=True)
class _Asked:
    """A question in words, its answer, the choices it offers, and how an absent thing in it was chosen."""

    question: str
    answer: str
    choices: tuple[str, ...] = ()
    absence: str = ""


def demo_train_samples(count: int | None, seed: int) -> list[Sample]:
    """Training samples in random order: the seen families in equal parts, and a share of captions.

    Args:
        count: how many; ``DEFAULT_TRAIN_COUNT`` where None.
    """
    total = DEFAULT_TRAIN_COUNT if count is None else count
    captions = round(total * CAPTION_SHARE)
    rng = random.Random(f"demo training {seed}")
    pools = _Pools(rng, "train", total)
    asked = [
        (family.name, image, question)
        for family, number in zip(SEEN, _shares(total - captions, len(SEEN)), strict=True)
        for image, question in _ask_family(family, number, pools, rng)
    ]
    for _ in range(captions):
        image = pools.any(rng)
        asked.append(("caption", image, _Asked(rng.choice(CAPTION_REQUESTS), describe(image.scene))))
    rng.shuffle(asked)
    return [
        Sample(
            id=f"demo-{seed}-{number}",
            images=(image,),
            turns=(Turn("user", f"{IMAGE_MARK}\n{one.question}"), Turn("assistant", one.answer)),
            task=task,
        )
        for number, (task, image, one) in enumerate(asked)
    ]


def demo_eval_questions(count: int = EVAL_COUNT, seed: int = EVAL_SEED) -> list[DemoQuestion]:
    """``count`` questions of seen and as many of unseen families, all about scenes and digits of the test split."""
    questions = []
    for kind, families in (("seen", SEEN), ("unseen", UNSEEN)):
        rng = random.Random(f"demo evaluation {kind} {seed}")
        pools = _Pools(rng, "test", count)
        for family, number in zip(families, _shares(count, len(families)), strict=True):
            per_id = 2 if family.paired else 1
            for index, (image, one) in enumerate(_ask_family(family, number, pools, rng)):
                name = f"{family.name}-{index // per_id}"
                questions.append(
                    DemoQuestion(name, family.name, image, one.question, one.answer, one.choices, one.absence)
                )
    return questions


def demo_captions(count: int, seed: int = EVAL_SEED) -> list[tuple[SceneImage, str]]:
    """Images of the test split with their captions, one digit in five: what tuning should not make a base forget."""
    rng = random.Random(f"demo captions {seed}")
    pools = _Pools(rng, "test", 3 * count)
    images = [pools.take("digit" if rng.random() < 0.2 else "shapes", "plain") for _ in range(count)]
    return [(image, describe(image.scene)) for image in images]


def _shares(total: int, parts: int) -> list[int]:
    """``total`` in equal parts, the first ones larger by one."""
    return [total // parts + (index < total % parts) for index in range(parts)]


class _Pools:
    """Scenes by kind and style; each is handed out again after the others of its pool."""

    def __init__(self, rng: random.Random, split: Split, questions: int) -> None:
        self._rng, self._split = rng, split
        self._size = max(60, questions // _QUESTIONS_PER_IMAGE // 4)
        self._pools: dict[tuple[str, str], list[SceneImage]] = {}
        self._next: dict[tuple[str, str], int] = {}

    def take(self, kind: str, style: str) -> SceneImage:
        """The next image: ``shapes`` (one to four things), ``single`` (one thing) or ``digit``."""
        key = (kind, style)
        if key not in self._pools:
            size = self._size if key == ("shapes", "plain") else max(60, self._size // 3)
            self._pools[key] = [self._draw(kind, style) for _ in range(size)]
            self._next[key] = 0
        pool, place = self._pools[key], self._next[key]
        self._next[key] = (place + 1) % len(pool)
        return pool[place]

    def any(self, rng: random.Random) -> SceneImage:
        """An image for a caption."""
        return self.take(rng.choices(("shapes", "single", "digit"), (6, 1, 3))[0], "plain")

    def _draw(self, kind: str, style: str) -> SceneImage:
        if kind == "digit":
            scene = draw_digit(self._rng, self._split, style=style)
        else:
            amount = 1 if kind == "single" else self._rng.choice((1, 2, 2, 3, 3, 4, 4))
            scene = draw_scene(self._rng, self._split, count=amount, style=style)
        return SceneImage(scene, self._rng.randrange(2**31))


def _ask_family(family: Family, number: int, pools: _Pools, rng: random.Random) -> list[tuple[SceneImage, _Asked]]:
    """``number`` questions of one family."""
    kind = "digit" if family.attribute in DIGIT_ATTRIBUTES else "single" if family.single else "shapes"
    asked: list[tuple[SceneImage, _Asked]] = []
    for turn in count():
        if len(asked) >= number:
            return asked[:number]
        cycle, place = divmod(turn, max(1, len(family.balance)))
        wanted = family.balance[place] if family.balance else None
        for _ in range(500):
            image = pools.take(kind, family.style)
            reading = _read(family, image.scene, rng)
            if reading is not None and wanted in (None, reading.value):
                asked += [(image, one) for one in _ask(family, reading, cycle, rng)]
                break
    raise AssertionError("count() never ends")


def _read(family: Family, scene: Scene, rng: random.Random) -> Reading | None:
    if family.attribute != "presence":
        return READINGS[family.attribute](scene, rng)
    if rng.random() < 0.5:
        return Reading({"thing": rng.choice(scene.things).name}, "yes", ("yes", "no"))
    kind = rng.choice(_POPE_KINDS)
    return Reading({"thing": absent_thing(scene, rng, kind)}, "no", ("yes", "no"), absence=kind)


def _ask(family: Family, reading: Reading, turn: int, rng: random.Random) -> list[_Asked]:
    """The question (two for a paired family) that a family makes of a reading; ``turn`` decides what a claim is."""
    wording = rng.choice(family.wordings)
    if family.format in VERDICTS:
        verdicts = VERDICTS[family.format]
        if reading.values == ("yes", "no"):
            return [_asked(family, wording, reading, "", verdicts[reading.values.index(reading.value)])]
        true, false = (reading.value, verdicts[0]), (wrong_value(reading, rng), verdicts[1])
        if family.paired:
            return [_asked(family, wording, reading, *claim) for claim in (true, false)]
        claims = [true, false]
        if family.format == "three-way":
            claims.append((rng.choice(UNSEEN_PROPERTIES), THREE_WAY[2]))
        return [_asked(family, wording, reading, *claims[turn % len(claims)])]
    if family.format == "choice":
        value, choices = _choices(reading, rng)
        return [_asked(family, wording, reading, reading.value, value, choices)]
    answer = reading.value
    if family.format == "sentence":
        answer = family.sentence.format(**reading.slots, value=reading.value)
    return [_asked(family, wording, reading, reading.value, answer)]


def _choices(reading: Reading, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    """The right choice and all that are offered: three to five, or all where there are no more than six."""
    value, values = reading.value, reading.values
    if values == ("yes", "no"):
        value, values = ("present", "absent")[reading.value == "no"], ("present", "absent")
    chosen = list(values)
    if len(values) > 6:
        others = [other for other in values if other != value]
        chosen = [value, *rng.sample(others, rng.randint(2, 4))]
    rng.shuffle(chosen)
    return value, tuple(chosen)


def _asked(
    family: Family, wording: str, reading: Reading, value: str, answer: str, choices: Sequence[str] = ()
) -> _Asked:
    stem = wording.format(**reading.slots, value=value, relation=RELATIONS.get(value, ""))
    request = FORMATS[family.format].format(choices=", ".join(choices))
    return _Asked(f"{stem} {request}", answer, tuple(choices), reading.absence)
