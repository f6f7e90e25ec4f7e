"""Scenes: their content, their split, and how they are opened as images.

A scene contains one to four shapes, or one real handwritten digit. The split of a scene of shapes is a function of its
content, so a scene of the test split occurs nowhere in training (nor in the pre-training of the embedded base). The
split of a digit scene is that of its handwritten digit.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from m2pt_cli.demo.render import (
    BACKGROUNDS,
    COLORS,
    IMAGE_SIZE,
    NUMBERS,
    PLACES,
    SHAPES,
    SIZES,
    TRAIN_DIGITS,
    digit_count,
    digit_value,
    draw,
)

Split = Literal["train", "test"]
SceneArrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]

_COLORS = tuple(COLORS)
_BACKGROUNDS = tuple(BACKGROUNDS)
# Scenes are not uniform: some shapes are more common, and warm colours occur with warm ones, cool with cool ones.
# Otherwise "popular" and "adversarial" absent things, as in POPE, would not differ from random ones.
_SHAPE_WEIGHTS = (0.23, 0.2, 0.17, 0.15, 0.13, 0.12)
_THEMES = (("red", "orange", "yellow", "purple"), ("green", "blue", "white", "cyan"), _COLORS)
_THEME_WEIGHTS = (0.25, 0.25, 0.5)
_PLACE_FACTORS = (1, 131, 17161, 2248091, 294499921, 38579489651, 5053913144281, 662062621900811, 86730203469006241)


@dataclass(frozen=True)
class Thing:
    """One shape in a cell of the 3 x 3 grid; every field is a word from `m2pt_cli.demo.render`."""

    shape: str
    color: str
    size: str
    place: str

    @property
    def row(self) -> int:
        """0 (north) to 2 (south)."""
        return PLACES.index(self.place) // 3

    @property
    def column(self) -> int:
        """0 (west) to 2 (east)."""
        return PLACES.index(self.place) % 3

    @property
    def name(self) -> str:
        """Colour and shape: unique within a scene."""
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Shapes on a background, in the order of their grid cells; or one handwritten digit."""

    background: str
    things: tuple[Thing, ...] = ()
    digit: int | None = None
    digit_color: str | None = None
    style: str = "plain"

    @property
    def value(self) -> int:
        """The value of the handwritten digit. Raises ValueError if there is none."""
        if self.digit is None:
            raise ValueError("this scene holds no digit")
        return digit_value(self.digit)


def layout_code(cells: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Hash layouts, to assign them to a split: ``(n, 9)`` cell codes and ``(n,)`` backgrounds -> ``(n,)``.

    The code of an empty cell is 0, of others ``1 + (shape * 8 + color) * 2 + size``. Hashes with ``hash % 5 == 0`` are
    the test split.
    """
    factors = np.array(_PLACE_FACTORS, np.uint64)
    with np.errstate(over="ignore"):
        total = (cells.astype(np.uint64) * factors).sum(1) + background.astype(np.uint64) * np.uint64(977)
        mixed = (total ^ (total >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        return (mixed ^ (mixed >> np.uint64(32))) % np.uint64(10007)


def is_test_layout(cells: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Whether each layout belongs to the test split, which has one in five; see `layout_code`."""
    return layout_code(cells, background) % np.uint64(5) == 0


def split_of(scene: Scene) -> Split:
    """The split of a scene; it does not depend on the style of drawing."""
    if scene.digit is not None:
        return "train" if scene.digit < TRAIN_DIGITS else "test"
    total = _BACKGROUNDS.index(scene.background) * 977
    for thing in scene.things:
        code = 1 + (SHAPES.index(thing.shape) * 8 + _COLORS.index(thing.color)) * 2 + SIZES.index(thing.size)
        total += code * _PLACE_FACTORS[PLACES.index(thing.place)]
    total %= 1 << 64  # the same arithmetic as layout_code, on Python's integers
    mixed = (total ^ (total >> 29)) * 0xBF58476D1CE4E5B9 % (1 << 64)
    return "test" if (mixed ^ (mixed >> 32)) % 10007 % 5 == 0 else "train"


def draw_scene(rng: random.Random, split: Split, *, count: int | None = None, style: str = "plain") -> Scene:
    """A random scene of ``count`` shapes (1 to 4 if None), no two with the same colour and shape."""
    while True:
        number = count or rng.randint(1, 4)
        theme = rng.choices(_THEMES, _THEME_WEIGHTS)[0]
        colors = rng.sample(theme, rng.randint(2, 4))
        names: list[tuple[str, str]] = []
        while len(names) < number:
            name = (rng.choice(colors), rng.choices(SHAPES, _SHAPE_WEIGHTS)[0])
            if name not in names:
                names.append(name)
        places = sorted(rng.sample(range(9), number))
        things = tuple(
            Thing(shape, color, rng.choice(SIZES), PLACES[place])
            for (color, shape), place in zip(names, places, strict=True)
        )
        scene = Scene(rng.choice(_BACKGROUNDS), things, style=style)
        if split_of(scene) == split:
            return scene


def draw_digit(rng: random.Random, split: Split, *, style: str = "plain") -> Scene:
    """A random scene of one real handwritten digit from ``split``."""
    index = rng.randrange(TRAIN_DIGITS) if split == "train" else rng.randrange(TRAIN_DIGITS, digit_count())
    return Scene(rng.choice(_BACKGROUNDS), digit=index, digit_color=rng.choice(_COLORS), style=style)


def describe(scene: Scene) -> str:
    """The caption: ``black scene: large red circle north, small blue star east.``"""
    if scene.digit is not None:
        return f"{scene.background} scene: {scene.digit_color} digit {NUMBERS[scene.value]}."
    parts = (f"{thing.size} {thing.color} {thing.shape} {thing.place}" for thing in scene.things)
    return f"{scene.background} scene: {', '.join(parts)}."


@dataclass(frozen=True)
class SceneImage:
    """An `ImageReference` that draws its scene when it is opened; the pixels are the same each time."""

    scene: Scene
    seed: int

    @property
    def name(self) -> str:
        """Identifies the image: its split, seed and caption."""
        return f"{split_of(self.scene)} scene {self.seed}: {describe(self.scene)}"

    def open(self) -> Image.Image:
        """The image, 48 x 48, RGB."""
        arrays = scene_arrays([self.scene])
        generator = np.random.default_rng(self.seed)
        pixels = draw(*arrays, generator, test=split_of(self.scene) == "test", styles=[self.scene.style])
        return Image.fromarray(pixels.reshape(IMAGE_SIZE, IMAGE_SIZE, 3))


def scene_arrays(scenes: list[Scene]) -> SceneArrays:
    """Convert scenes to the six index arrays that `m2pt_cli.demo.render.draw` takes."""
    count = len(scenes)
    shapes, colors, sizes = np.full((count, 9), -1), np.zeros((count, 9), int), np.zeros((count, 9), int)
    backgrounds = np.array([_BACKGROUNDS.index(scene.background) for scene in scenes])
    digits = np.array([-1 if scene.digit is None else scene.digit for scene in scenes])
    digit_colors = np.array([0 if scene.digit_color is None else _COLORS.index(scene.digit_color) for scene in scenes])
    for row, scene in enumerate(scenes):
        for thing in scene.things:
            cell = PLACES.index(thing.place)
            shapes[row, cell] = SHAPES.index(thing.shape)
            colors[row, cell] = _COLORS.index(thing.color)
            sizes[row, cell] = SIZES.index(thing.size)
    return shapes, colors, sizes, backgrounds, digits, digit_colors
