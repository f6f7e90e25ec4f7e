"""Scenes: their split, their captions, and reproducible images."""

from __future__ import annotations

import random

import numpy as np
import pytest

from m2pt_cli.demo.render import COLORS, PLACES, SHAPES, SIZES, TRAIN_DIGITS
from m2pt_cli.demo.scenes import (
    Scene,
    SceneImage,
    Split,
    Thing,
    describe,
    draw_digit,
    draw_scene,
    is_test_layout,
    scene_arrays,
    split_of,
)

BOTH: tuple[Split, Split] = ("train", "test")


@pytest.mark.parametrize("split", BOTH)
def test_scenes_belong_to_the_split_they_were_drawn_for(split: Split) -> None:
    rng = random.Random(0)
    for _ in range(200):
        assert split_of(draw_scene(rng, split)) == split
        assert split_of(draw_digit(rng, split)) == split


def test_one_layout_in_five_is_for_testing_whatever_its_style() -> None:
    rng = random.Random(1)
    scenes = [draw_scene(rng, rng.choices(BOTH, (4, 1))[0]) for _ in range(300)]
    for scene in scenes:
        styled = Scene(scene.background, scene.things, style="outline")
        assert split_of(styled) == split_of(scene)
    generator = np.random.default_rng(0)
    cells, grounds = generator.integers(97, size=(20000, 9)), generator.integers(3, size=20000)
    assert 0.18 < is_test_layout(cells, grounds).mean() < 0.22


@pytest.mark.parametrize("split", BOTH)
def test_the_vectorised_split_is_the_same(split: Split) -> None:
    rng = random.Random(2)
    shapes, colors, sizes, grounds, *_ = scene_arrays([draw_scene(rng, split) for _ in range(200)])
    cells = np.where(shapes >= 0, 1 + (shapes * 8 + colors) * 2 + sizes, 0)
    assert (is_test_layout(cells, grounds) == (split == "test")).all()


def test_things_are_unique_and_in_the_order_of_their_places() -> None:
    rng = random.Random(3)
    for _ in range(200):
        things = draw_scene(rng, "train").things
        assert 1 <= len(things) <= 4
        assert len({thing.name for thing in things}) == len(things)
        places = [PLACES.index(thing.place) for thing in things]
        assert places == sorted(set(places)) == [3 * thing.row + thing.column for thing in things]


def test_captions() -> None:
    things = (Thing("circle", "red", "large", "north"), Thing("star", "blue", "small", "east"))
    assert describe(Scene("black", things)) == "black scene: large red circle north, small blue star east."
    digit = Scene("gray", digit=0, digit_color="white")
    assert describe(digit).startswith("gray scene: white digit ") and describe(digit).endswith(".")
    with pytest.raises(ValueError, match="no digit"):
        _ = Scene("black", things).value


def test_an_image_has_the_same_pixels_every_time() -> None:
    image = SceneImage(draw_scene(random.Random(4), "test"), seed=5)
    first, second = np.asarray(image.open()), np.asarray(image.open())
    assert first.shape == (48, 48, 3) and (first == second).all() and image.open().mode == "RGB"
    assert (first != np.asarray(SceneImage(image.scene, seed=6).open())).any()
    assert image.name.startswith("test scene 5: ")


def test_arrays_hold_what_the_scene_says() -> None:
    scene = draw_scene(random.Random(5), "train", count=4)
    shapes, colors, sizes, *_ = scene_arrays([scene])
    assert (shapes[0] >= 0).sum() == 4
    for thing in scene.things:
        cell = PLACES.index(thing.place)
        found = SHAPES[shapes[0, cell]], list(COLORS)[colors[0, cell]], SIZES[sizes[0, cell]]
        assert found == (thing.shape, thing.color, thing.size)


def test_digits_of_the_test_split_are_never_drawn_for_training() -> None:
    rng = random.Random(6)
    assert max(draw_digit(rng, "train").digit or 0 for _ in range(2000)) < TRAIN_DIGITS
    assert min(draw_digit(rng, "test").digit or 0 for _ in range(2000)) >= TRAIN_DIGITS
