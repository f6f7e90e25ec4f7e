"""The rasteriser: shape masks, handwritten digits with a fixed split, styles."""

from __future__ import annotations

import numpy as np
import pytest

from m2pt_cli.demo.render import STYLES, TRAIN_DIGITS, digit_count, digit_values, draw, shape_masks


def _scene(shape: int = 0, color: int = 0, digit: int = -1, number: int = 1) -> tuple[np.ndarray, ...]:
    shapes = np.full((number, 9), -1)
    shapes[:, 4] = shape
    zeros = np.zeros((number, 9), int)
    return shapes, zeros + color, zeros, np.zeros(number, int), np.full(number, digit), np.full(number, color)


def test_the_middle_cell_has_the_colour_of_its_shape_and_the_others_the_background() -> None:
    image = draw(*_scene(shape=1, color=1), np.random.default_rng(0))[0].astype(int)
    assert image.shape == (48, 48, 3)
    red, green, blue = image[22:26, 22:26].mean((0, 1))
    assert green > 150 and red < 80 and blue < 100
    assert image[:16, :16].max() < 60


def test_every_shape_has_its_own_mask_and_large_ones_are_larger() -> None:
    masks = shape_masks(test=False, outline=False).mean((2, 3, 4))
    assert (masks[:, 0] > 1.5 * masks[:, 1]).all()
    average = shape_masks(test=False, outline=False)[:, 0].mean(1).reshape(6, -1)
    distances = np.linalg.norm(average[:, None] - average[None], axis=-1)
    assert distances[~np.eye(6, dtype=bool)].min() > 1


def test_test_masks_are_not_training_masks() -> None:
    train = shape_masks(test=False, outline=False)[0, 0].reshape(-1, 256)
    test = shape_masks(test=True, outline=False)[0, 0].reshape(-1, 256)
    assert abs(test[:, None] - train[None]).max(-1).min() > 0


def test_digits_are_split_by_a_fixed_index_and_no_image_is_in_both_parts() -> None:
    from sklearn.datasets import load_digits

    order = np.random.RandomState(0).permutation(1797)
    assert digit_count() == 1797 and TRAIN_DIGITS == 1400
    assert (digit_values(np.arange(1797)) == load_digits().target[order]).all()
    images = load_digits().images[order].reshape(1797, -1)
    train = {image.tobytes() for image in images[:TRAIN_DIGITS]}
    assert not any(image.tobytes() in train for image in images[TRAIN_DIGITS:])


def test_a_digit_covers_much_of_the_image() -> None:
    image = draw(*_scene(shape=-1, color=6, digit=3), np.random.default_rng(0), test=True)[0]
    assert 0.05 < (image.mean(-1) > 150).mean() < 0.6


@pytest.mark.parametrize("style", [style for style in STYLES if style != "plain"])
def test_every_style_changes_the_picture_and_leaves_the_rest_of_the_batch(style: str) -> None:
    plain = draw(*_scene(number=2), np.random.default_rng(0), styles=["plain", "plain"]).astype(int)
    mixed = draw(*_scene(number=2), np.random.default_rng(0), styles=["plain", style]).astype(int)
    assert (plain[0] == mixed[0]).all()
    assert abs(plain[1] - mixed[1]).mean() > 1


def test_thousands_of_scenes_a_second() -> None:
    import time

    arrays = _scene(number=256)
    draw(*arrays, np.random.default_rng(0))
    started = time.process_time()
    draw(*arrays, np.random.default_rng(0))
    assert time.process_time() - started < 0.5
