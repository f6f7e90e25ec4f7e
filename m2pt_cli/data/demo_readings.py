"""What can be asked about a scene: one reading per attribute, whatever the wording or the form of the answer.

A reading fills the slots of a question and knows the right value and the values that were possible. A question of any
answer format is made from it: the value itself, a choice of values, or a claim that proposes a value.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from m2pt_cli.data.scene_words import BACKGROUNDS, COLORS, NUMBERS, PLACES, PLURALS, SHAPES, SIZES
from m2pt_cli.data.scenes import Scene, Thing, draw_scene

YES_NO = ("yes", "no")
_COLORS = tuple(COLORS)
_BACKGROUNDS = tuple(BACKGROUNDS)


@dataclass(frozen=True)
class Reading:
    """One attribute of one scene.

    Attributes:
        slots: what fills a wording: ``{"shape": "star"}``.
        value: the truth.
        values: all values that could have been true.
        likely: wrong values that a careless look would take: those of the scene's other things.
        absence: how a thing that is not there was chosen, as `absent_thing` has it; empty elsewhere.
    """

    slots: dict[str, str]
    value: str
    values: tuple[str, ...]
    likely: tuple[str, ...] = ()
    absence: str = ""


def _unique(things: Sequence[Thing], field: str) -> list[Thing]:
    """Things that a field alone points out."""
    values = [getattr(thing, field) for thing in things]
    return [thing for thing, value in zip(things, values, strict=True) if values.count(value) == 1]


def _others(scene: Scene, field: str, value: str) -> tuple[str, ...]:
    return tuple({getattr(thing, field): None for thing in scene.things if getattr(thing, field) != value})


def read_color(scene: Scene, rng: random.Random) -> Reading | None:
    """The colour of the only circle (say)."""
    if not (things := _unique(scene.things, "shape")):
        return None
    thing = rng.choice(things)
    return Reading({"shape": thing.shape}, thing.color, _COLORS, _others(scene, "color", thing.color))


def read_shape(scene: Scene, rng: random.Random) -> Reading | None:
    """The shape of the only red thing (say)."""
    if not (things := _unique(scene.things, "color")):
        return None
    thing = rng.choice(things)
    return Reading({"color": thing.color}, thing.shape, SHAPES, _others(scene, "shape", thing.shape))


def read_size(scene: Scene, rng: random.Random) -> Reading:
    """Large or small."""
    thing = rng.choice(scene.things)
    return Reading({"thing": thing.name}, thing.size, SIZES)


def read_place(scene: Scene, rng: random.Random) -> Reading:
    """In which of the nine places a thing is."""
    thing = rng.choice(scene.things)
    return Reading({"thing": thing.name}, thing.place, PLACES, _others(scene, "place", thing.place))


def read_content(scene: Scene, rng: random.Random) -> Reading:
    """Which shape is in a place."""
    thing = rng.choice(scene.things)
    return Reading({"place": thing.place}, thing.shape, SHAPES, _others(scene, "shape", thing.shape))


def read_object(scene: Scene, rng: random.Random) -> Reading | None:
    """The shape of the only thing."""
    return Reading({}, scene.things[0].shape, SHAPES) if len(scene.things) == 1 else None


def read_presence(scene: Scene, rng: random.Random) -> Reading:
    """Whether a thing is there; half of the answers are yes, wrong things are near misses."""
    if rng.random() < 0.5:
        return Reading({"thing": rng.choice(scene.things).name}, "yes", YES_NO)
    return Reading({"thing": absent_thing(scene, rng, rng.choice(("random", "adversarial")))}, "no", YES_NO)


def read_relation(scene: Scene, rng: random.Random) -> Reading | None:
    """On which side of one thing another is: left or right, above or below."""
    if len(scene.things) < 2:
        return None
    first, second = rng.sample(scene.things, 2)
    axes = [axis for axis in ("column", "row") if getattr(first, axis) != getattr(second, axis)]
    axis = rng.choice(axes)
    values = ("left", "right") if axis == "column" else ("above", "below")
    value = values[getattr(first, axis) > getattr(second, axis)]
    return Reading({"first": first.name, "second": second.name}, value, values)


def read_count(scene: Scene, rng: random.Random) -> Reading:
    """How many of a shape there are, zero to four; every third time of a shape that is not there."""
    shapes = [thing.shape for thing in scene.things]
    shape = rng.choice(SHAPES) if rng.random() < 0.4 else rng.choice(shapes)
    number = shapes.count(shape)
    near = tuple(NUMBERS[n] for n in (number - 1, number + 1) if 0 <= n <= 4)
    return Reading({"shape": shape, "plural": PLURALS[shape]}, NUMBERS[number], NUMBERS[:5], near)


def read_equality(scene: Scene, rng: random.Random) -> Reading | None:
    """Whether two shapes have the same colour."""
    things = _unique(scene.things, "shape")
    if len(things) < 2:
        return None
    first, second = rng.sample(things, 2)
    value = YES_NO[first.color != second.color]
    return Reading({"first": first.shape, "second": second.shape}, value, YES_NO)


def read_ground(scene: Scene, rng: random.Random) -> Reading:
    """The colour behind everything."""
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
    """A value that is not true; two times of three one of the scene's other things."""
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
    """A thing that is not in the scene, chosen as POPE chooses (Li et al., 2023, section 4).

    Args:
        kind: ``random``: any; ``popular``: one of the commonest in the training scenes; ``adversarial``: one that
            shares its colour or its shape with a thing that is there, as the most confusable.
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
