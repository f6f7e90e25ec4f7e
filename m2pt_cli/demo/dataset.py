"""Generate the training samples and evaluation questions of the demo data set, and score answers to them."""

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

# The possible values of each attribute; answers are parsed for these words.
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
        question_id: unique, except that the two questions of an MME-like pair share one.
        family: a key of ``FAMILIES``.
        answer: the reference answer.
        choices: the values offered by a question of format "choice".
        absence: how a thing that is not in the image was chosen: random, popular or adversarial; empty otherwise.
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
        """Whether the family is part of the training data."""
        return FAMILIES[self.family].seen


def parse_demo_answer(family: str, text: str) -> str | None:
    """Parse the value that an answer names; None if the answer does not have the requested format.

    A sentence must have at least four words, a verb (is, are) and exactly one value of the attribute. In every other
    format the answer must be the value alone. Case, a leading article and punctuation at the ends are ignored, and a
    digit counts as its number word; any other extra text is an error.
    """
    entry = FAMILIES[family]
    values = VERDICTS.get(entry.format) or VALUES[entry.attribute]
    normalized = " ".join(text.lower().split())
    if entry.format == "sentence":
        words = re.findall(r"\w+", normalized)
        found = {_digit_to_word(word) for word in words} & set(values)
        is_sentence = len(words) >= 4 and ("is" in words or "are" in words)
        return found.pop() if is_sentence and len(found) == 1 else None
    value = _digit_to_word(_ARTICLE.sub("", _EDGES.sub("", normalized)))
    return value if value in values else None


def _digit_to_word(word: str) -> str:
    return NUMBERS[int(word)] if word.isascii() and word.isdigit() and len(word) == 1 else word


def demo_answer_is_right(family: str, answer: str, prediction: str) -> bool:
    """Whether a prediction names the same value as the reference answer."""
    parsed = parse_demo_answer(family, prediction)
    return parsed is not None and parsed == parse_demo_answer(family, answer)


def majority_guess(questions: Iterable[DemoQuestion]) -> dict[str, float]:
    """The accuracy of guessing per family: the most common answer or a random choice, whichever scores higher."""
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
CAPTION_SHARE = 0.12  # fraction of the training samples: captions keep the base from forgetting what it can do already
DEFAULT_TRAIN_COUNT = 19_200  # 300 steps of 64 samples, the default training of nano
EVAL_COUNT = 2000  # seen questions, and as many unseen ones
EVAL_SEED = 20_24
_QUESTIONS_PER_IMAGE = 3
_ABSENCE_KINDS = ("random", "popular", "adversarial")


@dataclass(frozen=True)
class _QuestionText:
    """The text of a question and its answer; ``choices`` and ``absence`` as in `DemoQuestion`."""

    question: str
    answer: str
    choices: tuple[str, ...] = ()
    absence: str = ""


def demo_train_samples(count: int | None, seed: int) -> list[Sample]:
    """Generate training samples in random order: equally many of each seen family, and captions.

    Args:
        count: number of samples; ``DEFAULT_TRAIN_COUNT`` if None.
        seed: of all random choices.
    """
    total = DEFAULT_TRAIN_COUNT if count is None else count
    captions = round(total * CAPTION_SHARE)
    rng = random.Random(f"demo training {seed}")
    pools = _ImagePools(rng, "train", total)
    drawn = [
        (family.name, image, question)
        for family, number in zip(SEEN, _equal_parts(total - captions, len(SEEN)), strict=True)
        for image, question in _family_questions(family, number, pools, rng)
    ]
    for _ in range(captions):
        image = pools.any(rng)
        drawn.append(("caption", image, _QuestionText(rng.choice(CAPTION_REQUESTS), describe(image.scene))))
    rng.shuffle(drawn)
    return [
        Sample(
            id=f"demo-{seed}-{number}",
            images=(image,),
            turns=(Turn("user", f"{IMAGE_MARK}\n{text.question}"), Turn("assistant", text.answer)),
            task=task,
        )
        for number, (task, image, text) in enumerate(drawn)
    ]


def demo_eval_questions(count: int = EVAL_COUNT, seed: int = EVAL_SEED) -> list[DemoQuestion]:
    """Generate ``count`` questions of seen and ``count`` of unseen families, about images of the test split."""
    questions = []
    for kind, families in (("seen", SEEN), ("unseen", UNSEEN)):
        rng = random.Random(f"demo evaluation {kind} {seed}")
        pools = _ImagePools(rng, "test", count)
        for family, number in zip(families, _equal_parts(count, len(families)), strict=True):
            per_id = 2 if family.paired else 1
            for index, (image, text) in enumerate(_family_questions(family, number, pools, rng)):
                name = f"{family.name}-{index // per_id}"
                questions.append(
                    DemoQuestion(name, family.name, image, text.question, text.answer, text.choices, text.absence)
                )
    return questions


def demo_captions(count: int, seed: int = EVAL_SEED) -> list[tuple[SceneImage, str]]:
    """``count`` images of the test split with captions, about one in five a digit.

    They measure whether tuning makes the base forget how to caption.
    """
    rng = random.Random(f"demo captions {seed}")
    pools = _ImagePools(rng, "test", 3 * count)
    images = [pools.take("digit" if rng.random() < 0.2 else "shapes", "plain") for _ in range(count)]
    return [(image, describe(image.scene)) for image in images]


def _equal_parts(total: int, parts: int) -> list[int]:
    """Split ``total`` into parts that differ by at most one, the larger ones first."""
    return [total // parts + (index < total % parts) for index in range(parts)]


class _ImagePools:
    """Pools of images by kind and style; each pool is drawn at its first use and then cycled through."""

    def __init__(self, rng: random.Random, split: Split, questions: int) -> None:
        self._rng, self._split = rng, split
        self._size = max(60, questions // _QUESTIONS_PER_IMAGE // 4)
        self._pools: dict[tuple[str, str], list[SceneImage]] = {}
        self._next: dict[tuple[str, str], int] = {}

    def take(self, kind: str, style: str) -> SceneImage:
        """The next image of a pool.

        Args:
            kind: ``shapes`` (one to four things), ``single`` (one thing) or ``digit``.
            style: one of ``render.STYLES``.
        """
        key = (kind, style)
        if key not in self._pools:
            size = self._size if key == ("shapes", "plain") else max(60, self._size // 3)
            self._pools[key] = [self._draw(kind, style) for _ in range(size)]
            self._next[key] = 0
        pool, index = self._pools[key], self._next[key]
        self._next[key] = (index + 1) % len(pool)
        return pool[index]

    def any(self, rng: random.Random) -> SceneImage:
        """An image of a random kind, for a caption."""
        return self.take(rng.choices(("shapes", "single", "digit"), (6, 1, 3))[0], "plain")

    def _draw(self, kind: str, style: str) -> SceneImage:
        if kind == "digit":
            scene = draw_digit(self._rng, self._split, style=style)
        else:
            amount = 1 if kind == "single" else self._rng.choice((1, 2, 2, 3, 3, 4, 4))
            scene = draw_scene(self._rng, self._split, count=amount, style=style)
        return SceneImage(scene, self._rng.randrange(2**31))


def _family_questions(
    family: Family, number: int, pools: _ImagePools, rng: random.Random
) -> list[tuple[SceneImage, _QuestionText]]:
    """``number`` questions of one family, each with its image; values in ``family.balance`` occur equally often."""
    kind = "digit" if family.attribute in DIGIT_ATTRIBUTES else "single" if family.single else "shapes"
    questions: list[tuple[SceneImage, _QuestionText]] = []
    for turn in count():
        if len(questions) >= number:
            return questions[:number]
        cycle, index = divmod(turn, max(1, len(family.balance)))
        wanted = family.balance[index] if family.balance else None
        for _ in range(500):
            image = pools.take(kind, family.style)
            reading = _read_attribute(family, image.scene, rng)
            if reading is not None and wanted in (None, reading.value):
                questions += [(image, text) for text in _question_texts(family, reading, cycle, rng)]
                break
    raise AssertionError("count() never ends")


def _read_attribute(family: Family, scene: Scene, rng: random.Random) -> Reading | None:
    if family.attribute != "presence":
        return READINGS[family.attribute](scene, rng)
    if rng.random() < 0.5:
        return Reading({"thing": rng.choice(scene.things).name}, "yes", ("yes", "no"))
    kind = rng.choice(_ABSENCE_KINDS)
    return Reading({"thing": absent_thing(scene, rng, kind)}, "no", ("yes", "no"), absence=kind)


def _question_texts(family: Family, reading: Reading, turn: int, rng: random.Random) -> list[_QuestionText]:
    """The question about a reading, or both questions of a paired family.

    In formats that verify a claim, ``turn`` selects in rotation whether the claim is true or false (or, in the
    three-way format, undecidable).
    """
    wording = rng.choice(family.wordings)
    if family.format in VERDICTS:
        verdicts = VERDICTS[family.format]
        if reading.values == ("yes", "no"):
            return [_fill(family, wording, reading, "", verdicts[reading.values.index(reading.value)])]
        true, false = (reading.value, verdicts[0]), (wrong_value(reading, rng), verdicts[1])
        if family.paired:
            return [_fill(family, wording, reading, *claim) for claim in (true, false)]
        claims = [true, false]
        if family.format == "three-way":
            claims.append((rng.choice(UNSEEN_PROPERTIES), THREE_WAY[2]))
        return [_fill(family, wording, reading, *claims[turn % len(claims)])]
    if family.format == "choice":
        value, choices = _choices(reading, rng)
        return [_fill(family, wording, reading, reading.value, value, choices)]
    answer = reading.value
    if family.format == "sentence":
        answer = family.sentence.format(**reading.slots, value=reading.value)
    return [_fill(family, wording, reading, reading.value, answer)]


def _choices(reading: Reading, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    """Return ``(correct choice, all choices)``: three to five choices, or all values if there are at most six."""
    value, values = reading.value, reading.values
    if values == ("yes", "no"):
        value, values = ("present", "absent")[reading.value == "no"], ("present", "absent")
    chosen = list(values)
    if len(values) > 6:
        others = [other for other in values if other != value]
        chosen = [value, *rng.sample(others, rng.randint(2, 4))]
    rng.shuffle(chosen)
    return value, tuple(chosen)


def _fill(
    family: Family, wording: str, reading: Reading, value: str, answer: str, choices: Sequence[str] = ()
) -> _QuestionText:
    """Fill the slots of a wording and append the request for the answer's format."""
    stem = wording.format(**reading.slots, value=value, relation=RELATIONS.get(value, ""))
    request = FORMATS[family.format].format(choices=", ".join(choices))
    return _QuestionText(f"{stem} {request}", answer, tuple(choices), reading.absence)
