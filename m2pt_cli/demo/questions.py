# ruff: noqa: E501  (tables: one entry a line reads better)
"""The demo's question families, and the functions that read attributes of a scene."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from m2pt_cli.demo.render import BACKGROUNDS, COLORS, NUMBERS, PLACES, PLURALS, SHAPES, SIZES
from m2pt_cli.demo.scenes import Scene, Thing, draw_scene

YES_NO = ("yes", "no")
_COLORS = tuple(COLORS)
_BACKGROUNDS = tuple(BACKGROUNDS)


@dataclass(frozen=True)
class Reading:
    """The value of one attribute in one scene.

    Attributes:
        slots: the values of a wording's slots: ``{"shape": "star"}``.
        value: the true value.
        values: all possible values.
        likely: plausible wrong values, such as those of the scene's other things.
        absence: the ``kind`` of `absent_thing` by which an absent thing was chosen; empty otherwise.
    """

    slots: dict[str, str]
    value: str
    values: tuple[str, ...]
    likely: tuple[str, ...] = ()
    absence: str = ""


def _unique(things: Sequence[Thing], field: str) -> list[Thing]:
    """The things whose value of ``field`` no other thing has."""
    values = [getattr(thing, field) for thing in things]
    return [thing for thing, value in zip(things, values, strict=True) if values.count(value) == 1]


def _others(scene: Scene, field: str, value: str) -> tuple[str, ...]:
    return tuple({getattr(thing, field): None for thing in scene.things if getattr(thing, field) != value})


def read_color(scene: Scene, rng: random.Random) -> Reading | None:
    """The colour of a thing that is the only one of its shape; None if there is no such thing."""
    if not (things := _unique(scene.things, "shape")):
        return None
    thing = rng.choice(things)
    return Reading({"shape": thing.shape}, thing.color, _COLORS, _others(scene, "color", thing.color))


def read_shape(scene: Scene, rng: random.Random) -> Reading | None:
    """The shape of a thing that is the only one of its colour; None if there is no such thing."""
    if not (things := _unique(scene.things, "color")):
        return None
    thing = rng.choice(things)
    return Reading({"color": thing.color}, thing.shape, SHAPES, _others(scene, "shape", thing.shape))


def read_size(scene: Scene, rng: random.Random) -> Reading:
    """Whether a thing is large or small."""
    thing = rng.choice(scene.things)
    return Reading({"thing": thing.name}, thing.size, SIZES)


def read_place(scene: Scene, rng: random.Random) -> Reading:
    """In which of the nine grid cells a thing is."""
    thing = rng.choice(scene.things)
    return Reading({"thing": thing.name}, thing.place, PLACES, _others(scene, "place", thing.place))


def read_content(scene: Scene, rng: random.Random) -> Reading:
    """Which shape is in a given grid cell."""
    thing = rng.choice(scene.things)
    return Reading({"place": thing.place}, thing.shape, SHAPES, _others(scene, "shape", thing.shape))


def read_object(scene: Scene, rng: random.Random) -> Reading | None:
    """The shape of the scene's only thing; None if there are several."""
    return Reading({}, scene.things[0].shape, SHAPES) if len(scene.things) == 1 else None


def read_presence(scene: Scene, rng: random.Random) -> Reading:
    """Whether a thing is in the scene; half of the answers are yes, absent things are random or adversarial."""
    if rng.random() < 0.5:
        return Reading({"thing": rng.choice(scene.things).name}, "yes", YES_NO)
    return Reading({"thing": absent_thing(scene, rng, rng.choice(("random", "adversarial")))}, "no", YES_NO)


def read_relation(scene: Scene, rng: random.Random) -> Reading | None:
    """Where one thing is relative to another: left or right, above or below; None if the scene has one thing."""
    if len(scene.things) < 2:
        return None
    first, second = rng.sample(scene.things, 2)
    axes = [axis for axis in ("column", "row") if getattr(first, axis) != getattr(second, axis)]
    axis = rng.choice(axes)
    values = ("left", "right") if axis == "column" else ("above", "below")
    value = values[getattr(first, axis) > getattr(second, axis)]
    return Reading({"first": first.name, "second": second.name}, value, values)


def read_count(scene: Scene, rng: random.Random) -> Reading:
    """How many things have a given shape, zero to four; in 40 % of the calls the shape may be absent."""
    shapes = [thing.shape for thing in scene.things]
    shape = rng.choice(SHAPES) if rng.random() < 0.4 else rng.choice(shapes)
    number = shapes.count(shape)
    near = tuple(NUMBERS[n] for n in (number - 1, number + 1) if 0 <= n <= 4)
    return Reading({"shape": shape, "plural": PLURALS[shape]}, NUMBERS[number], NUMBERS[:5], near)


def read_equality(scene: Scene, rng: random.Random) -> Reading | None:
    """Whether two things, each the only one of its shape, have the same colour; None if there are not two."""
    things = _unique(scene.things, "shape")
    if len(things) < 2:
        return None
    first, second = rng.sample(things, 2)
    value = YES_NO[first.color != second.color]
    return Reading({"first": first.shape, "second": second.shape}, value, YES_NO)


def read_ground(scene: Scene, rng: random.Random) -> Reading:
    """The colour of the background."""
    return Reading({}, scene.background, _BACKGROUNDS)


def read_digit(scene: Scene, rng: random.Random) -> Reading:
    """Which digit is written."""
    return Reading({}, NUMBERS[scene.value], NUMBERS)


def read_parity(scene: Scene, rng: random.Random) -> Reading:
    """Whether the written digit is odd or even."""
    return Reading({}, ("even", "odd")[scene.value % 2], ("odd", "even"))


def read_ink(scene: Scene, rng: random.Random) -> Reading:
    """The colour of the written digit."""
    if scene.digit_color is None:
        raise ValueError("this scene holds no digit")
    return Reading({}, scene.digit_color, _COLORS)


READINGS: dict[str, Callable[[Scene, random.Random], Reading | None]] = {
    "color": read_color,
    "shape": read_shape,
    "size": read_size,
    "place": read_place,
    "content": read_content,
    "object": read_object,
    "presence": read_presence,
    "relation": read_relation,
    "count": read_count,
    "equality": read_equality,
    "ground": read_ground,
    "digit": read_digit,
    "parity": read_parity,
    "ink": read_ink,
}
DIGIT_ATTRIBUTES = ("digit", "parity", "ink")


def wrong_value(reading: Reading, rng: random.Random) -> str:
    """A wrong value; with probability 0.67 one of ``reading.likely``, if there are any."""
    if reading.likely and rng.random() < 0.67:
        return rng.choice(reading.likely)
    return rng.choice([value for value in reading.values if value != reading.value])


@lru_cache(maxsize=1)
def scene_statistics() -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """How often each thing, and each pair of things, occurs in 4,000 training scenes."""
    rng = random.Random("statistics")
    single: dict[str, int] = {}
    together: dict[tuple[str, str], int] = {}
    for _ in range(4000):
        names = [thing.name for thing in draw_scene(rng, "train").things]
        for name in names:
            single[name] = single.get(name, 0) + 1
            for other in names:
                together[name, other] = together.get((name, other), 0) + 1
    return single, together


def absent_thing(scene: Scene, rng: random.Random, kind: str) -> str:
    """A thing that is not in the scene, chosen as in POPE (Li et al., 2023, section 4).

    Args:
        kind: ``random``: any; ``popular``: one of the six most common in the training scenes; ``adversarial``: one that
            shares its colour or shape with a thing in the scene, so it is easily confused.
    """
    present = {thing.name for thing in scene.things}
    if kind == "popular":
        single, _ = scene_statistics()
        ranked = [name for name in sorted(single, key=lambda name: (-single[name], name)) if name not in present]
        return rng.choice(ranked[:6])
    if kind == "adversarial":
        while True:
            thing = rng.choice(scene.things)
            same_color = rng.random() < 0.5
            color, shape = (thing.color, rng.choice(SHAPES)) if same_color else (rng.choice(_COLORS), thing.shape)
            if f"{color} {shape}" not in present:
                return f"{color} {shape}"
    while (name := f"{rng.choice(_COLORS)} {rng.choice(SHAPES)}") in present:
        pass
    return name


# The request for each answer format, appended to every question. "choice" lists the choices.
FORMATS = {
    "word": "Answer with one word.",
    "yes/no": "Answer yes or no.",
    "true/false": "Answer true or false.",
    "choice": "Choose one: {choices}.",
    "number": "Answer with a number.",
    "sentence": "Answer in a short sentence.",
    "three-way": "Answer yes, no or not sure.",
}
THREE_WAY = ("yes", "no", "not sure")
RELATIONS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}


@dataclass(frozen=True)
class Family:
    """One family of questions.

    Attributes:
        name: unique; shown in reports.
        attribute: a key of ``READINGS``.
        operation: what the question requires (look up, verify, count, ...), for documentation.
        format: a key of ``FORMATS``.
        wordings: question templates; slots are those of the reading, ``{value}`` is the value that a claim proposes,
            ``{relation}`` the same as a preposition.
        seen: part of the training data of ``--data demo``.
        style: how its images are drawn, one of ``render.STYLES``.
        single: images contain one shape only.
        balance: true values that occur equally often.
        sentence: the template of a sentence answer.
        paired: two questions per image, one with the answer yes, one with no, as in MME.
        imitates: the benchmark that the family imitates.
    """

    name: str
    attribute: str
    operation: str
    format: str
    wordings: tuple[str, ...]
    seen: bool = True
    style: str = "plain"
    single: bool = False
    balance: tuple[str, ...] = ()
    sentence: str = ""
    paired: bool = False
    imitates: str = ""


_COUNTS = NUMBERS[:4]
_DIGITS = NUMBERS

SEEN = (
    Family("color-word", "color", "look up", "word", ("What color is the {shape}?", "What is the color of the {shape}?")),
    Family("color-yesno", "color", "verify", "yes/no", ("Is the {shape} {value}?", "Is {value} the color of the {shape}?")),
    Family("color-choice", "color", "look up", "choice", ("Which color does the {shape} have?", "Which is the color of the {shape}?")),
    Family("shape-word", "shape", "look up", "word", ("What shape is the {color} object?", "Which shape does the {color} object have?")),
    Family("shape-truefalse", "shape", "verify", "true/false", ("The {color} object is a {value}.", "The object in {color} is a {value}.")),
    Family(
        "shape-sentence", "shape", "look up", "sentence",
        ("What kind of object is {color}?", "What is the {color} object?"),
        sentence="the {color} object is a {value}.",
    ),
    Family("size-yesno", "size", "verify", "yes/no", ("Is the {thing} {value}?", "Does the {thing} look {value}?")),
    Family("size-choice", "size", "look up", "choice", ("How big is the {thing}?", "Which size does the {thing} have?"), balance=SIZES),
    Family("size-threeway", "size", "verify", "three-way", ("Is it clear that the {thing} is {value}?", "Can you say that the {thing} is {value}?")),
    Family("place-word", "place", "look up", "word", ("Where is the {thing}?", "In which part of the image is the {thing}?")),
    Family("place-truefalse", "place", "verify", "true/false", ("The {thing} is in the {value}.", "You find the {thing} in the {value}.")),
    Family("place-threeway", "place", "verify", "three-way", ("Do you know that the {thing} is {value}?", "Is the {thing} seen to be {value}?")),
    Family("content-word", "content", "look up", "word", ("Which shape is in the {place}?", "What shape do you see in the {place}?")),
    Family("object-word", "object", "recognise", "word", ("What is drawn in this image?", "What object is this?"), single=True, balance=SHAPES),
    Family("object-yesno", "object", "verify", "yes/no", ("Is it a {value}?", "Is this object a {value}?"), single=True, balance=SHAPES),
    Family("presence-truefalse", "presence", "search", "true/false", ("A {thing} is visible.", "The image shows a {thing}."), balance=YES_NO),
    Family("presence-choice", "presence", "search", "choice", ("Can you find a {thing}?", "What do you say about a {thing}?"), balance=YES_NO),
    Family("relation-choice", "relation", "compare", "choice", ("On which side of the {second} is the {first}?", "How is the {first} placed from the {second}?"), balance=tuple(RELATIONS)),
    Family("relation-truefalse", "relation", "compare", "true/false", ("The {first} is {relation} the {second}.", "You see the {first} {relation} the {second}."), balance=tuple(RELATIONS)),
    Family("count-number", "count", "count", "number", ("How many {plural} are there?", "How many {plural} do you see?"), balance=_COUNTS),
    Family("count-truefalse", "count", "count and verify", "true/false", ("The number of {plural} is {value}.", "There are {value} {plural}."), balance=_COUNTS),
    Family("equality-yesno", "equality", "compare", "yes/no", ("Do the {first} and the {second} have the same color?", "Is the color of the {first} that of the {second}?"), balance=YES_NO),
    Family("ground-word", "ground", "look up", "word", ("What is the background color?", "Which color is behind the objects?"), balance=tuple(BACKGROUNDS)),
    Family("digit-yesno", "digit", "verify", "yes/no", ("Is this digit a {value}?", "Does the image show the digit {value}?"), balance=_DIGITS),
    Family("digit-choice", "digit", "recognise", "choice", ("What digit is written here?", "Which digit do you see?"), balance=_DIGITS),
    Family("digit-sentence", "digit", "recognise", "sentence", ("What is written in this image?", "What is this?"), sentence="this is the digit {value}.", balance=_DIGITS),
    Family("parity-choice", "parity", "compute", "choice", ("Is this number odd or even?", "What kind of number is this?"), balance=("odd", "even")),
    Family("ink-word", "ink", "look up", "word", ("What color is the digit?", "What is the color of this digit?")),
    Family("outlined-shape-word", "shape", "look up", "word", ("What shape has the outline in {color}?", "The {color} outline has what shape?"), style="outline"),
    Family("striped-shape-sentence", "shape", "look up", "sentence", ("What kind of striped object is {color}?",), style="striped", sentence="the {color} object is a {value}."),
    Family("tinted-color-word", "color", "look up", "word", ("In this light, what color is the {shape}?",), style="tinted"),
    Family("noisy-digit-choice", "digit", "recognise", "choice", ("What digit is in the noise?",), style="noisy", balance=_DIGITS),
)  # fmt: skip

UNSEEN = (
    Family("pope", "presence", "search", "yes/no", ("Is there a {thing} in the image?",), seen=False, balance=YES_NO, imitates="POPE"),
    Family("mme-count", "count", "count and verify", "yes/no", ("Is there a total of {value} {plural} in this image?",), seen=False, balance=_COUNTS, paired=True, imitates="MME count"),
    Family("mme-position", "place", "verify", "yes/no", ("Is the {thing} located in the {value} of the image?",), seen=False, paired=True, imitates="MME position"),
    Family("vsr", "relation", "compare", "yes/no", ("Does the image agree with this statement: the {first} lies {relation} the {second}?",), seen=False, balance=tuple(RELATIONS), imitates="VSR"),
    Family("snli-ve", "color", "verify", "three-way", ("Does the image support this statement: the {shape} is {value}?",), seen=False, imitates="SNLI-VE"),
    Family("mnist", "digit", "recognise", "number", ("Which digit is shown in this image?",), seen=False, balance=_DIGITS, imitates="MNIST"),
    Family("cifar", "object", "recognise", "choice", ("What is the main object in this image?",), seen=False, single=True, balance=SHAPES, imitates="CIFAR-10"),
    Family("blurred-cifar", "object", "recognise", "choice", ("What does this blurred picture show?",), seen=False, style="blurred", single=True, balance=SHAPES, imitates="CIFAR-10, blurred"),
    Family("outlined-presence", "presence", "search", "yes/no", ("Is any {thing} drawn here?",), seen=False, style="outline", balance=YES_NO),
    Family("noisy-digit-truefalse", "digit", "verify", "true/false", ("The handwritten number is {value}.",), seen=False, style="noisy", balance=_DIGITS),
    Family("color-truefalse", "color", "verify", "true/false", ("The {shape} has the color {value}.",), seen=False),
    Family("equality-truefalse", "equality", "compare", "true/false", ("The {first} and the {second} are equal in color.",), seen=False, balance=YES_NO),
    Family("content-choice", "content", "look up", "choice", ("What can be found at the {place}?",), seen=False),
    Family("ground-choice", "ground", "look up", "choice", ("What color fills the backdrop?",), seen=False, balance=tuple(BACKGROUNDS)),
    Family("ink-choice", "ink", "look up", "choice", ("Which color does the handwritten number have?",), seen=False),
)  # fmt: skip

FAMILIES = {family.name: family for family in (*SEEN, *UNSEEN)}
