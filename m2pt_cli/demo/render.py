"""Draw scenes as pixels, and define the words for colours, shapes, sizes and places."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# RGB, 0 to 255
COLORS = {
    "red": (225, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 235),
    "yellow": (240, 220, 50),
    "purple": (150, 50, 190),
    "orange": (250, 140, 30),
    "white": (245, 245, 245),
    "cyan": (60, 220, 225),
}
BACKGROUNDS = {"black": (12, 12, 12), "gray": (105, 105, 105), "brown": (95, 60, 35)}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
PLURALS = {shape: "crosses" if shape == "cross" else shape + "s" for shape in SHAPES}
SIZES = ("large", "small")
# The cells of the 3 x 3 grid, row by row.
PLACES = ("northwest", "north", "northeast", "west", "center", "east", "southwest", "south", "southeast")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Properties that an image can't show: a claim about them can be neither supported nor refuted.
UNSEEN_PROPERTIES = ("heavy", "old", "soft", "expensive", "warm", "new", "hollow", "fragile")


IMAGE_SIZE = 48
CELL = 16
STYLES = ("plain", "outline", "striped", "noisy", "blurred", "tinted", "faint")
TRAIN_DIGITS = 1400  # of 1,797, after a fixed permutation

_COLOR_VALUES = np.array(list(COLORS.values()), np.float32)
_BACKGROUND_VALUES = np.array(list(BACKGROUNDS.values()), np.float32)
_TINT = np.array([1.0, 0.72, 0.5], np.float32)  # imitates warm light: less green, half of the blue
_SUPERSAMPLING = 3


def _inside(shape: str, x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether each point is inside a shape of radius 1 around the origin; y points down."""
    if shape == "circle":
        return x * x + y * y <= 1
    if shape == "square":
        return np.maximum(abs(x), abs(y)) <= 0.85
    if shape == "triangle":
        return (y <= 0.9) & (abs(x) * 1.9 <= y + 1)
    if shape == "diamond":
        return abs(x) / 0.68 + abs(y) / 1.1 <= 1
    if shape == "cross":
        return ((abs(x) <= 0.34) & (abs(y) <= 1)) | ((abs(y) <= 0.34) & (abs(x) <= 1))
    # A five-pointed star: by symmetry, map every point to half of one tip, then test one edge.
    radius, angle = np.hypot(x, y), np.arctan2(x, -y)
    folded = abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    along, across = radius * np.cos(folded), radius * np.sin(folded)
    tip, notch_x, notch_y = 1.12, 0.42 * np.cos(np.pi / 5), 0.42 * np.sin(np.pi / 5)
    return (along - tip) * notch_y + across * (tip - notch_x) <= 0


@lru_cache(maxsize=4)
def shape_masks(*, test: bool, outline: bool) -> NDArray[np.float32]:
    """Shape masks ``(6 shapes, 2 sizes, variants, 16, 16)`` in 0..1, antialiased; large first.

    Variants differ in radius, position and tilt; the test split has variants of its own.
    """
    variants = 48 if test else 128
    generator = np.random.default_rng(99 if test else 7)
    fine = CELL * _SUPERSAMPLING
    axis = (np.arange(fine, dtype=np.float32) + 0.5) / _SUPERSAMPLING - CELL / 2
    bank = np.empty((len(SHAPES), 2, variants, CELL, CELL), np.float32)
    for index, shape in enumerate(SHAPES):
        for size, (smallest, largest, jitter) in enumerate(((6.5, 7.2, 0.5), (4.4, 5.1, 2.2))):
            radius = generator.uniform(smallest, largest, (variants, 1, 1)).astype(np.float32)
            centre = generator.uniform(-jitter, jitter, (2, variants, 1, 1)).astype(np.float32)
            tilt = generator.uniform(-0.1, 0.1, (variants, 1, 1)).astype(np.float32)
            x, y = axis[None, None, :] - centre[0], axis[None, :, None] - centre[1]
            x, y = (x * np.cos(tilt) + y * np.sin(tilt)) / radius, (y * np.cos(tilt) - x * np.sin(tilt)) / radius
            mask = _inside(shape, x, y)
            if outline:
                mask &= ~_inside(shape, x / 0.62, y / 0.62)
            blocks = mask.reshape(variants, CELL, _SUPERSAMPLING, CELL, _SUPERSAMPLING)
            bank[index, size] = blocks.mean((2, 4), dtype=np.float32)
    return bank


@lru_cache(maxsize=1)
def _digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """scikit-learn's digits in a fixed random order: images ``(1797, 10, 10)`` in 0..1 with a zero border; values."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.RandomState(0).permutation(len(data.images))
    images = np.pad(data.images[order].astype(np.float32) / 16, ((0, 0), (1, 1), (1, 1)))
    return images, data.target[order].astype(np.int64)


def digit_count() -> int:
    """The number of handwritten digits; those with an index below ``TRAIN_DIGITS`` are the training split."""
    return len(_digits()[1])


def digit_value(index: int) -> int:
    """The value, 0 to 9, of the handwritten digit with this index."""
    return int(_digits()[1][index])


def digit_values(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """The values, 0 to 9, of the handwritten digits with these indices."""
    return _digits()[1][indices]


def _digit_masks(indices: NDArray[np.int64], generator: np.random.Generator, *, distort: bool) -> NDArray[np.float32]:
    """Masks ``(n, 48, 48)`` in 0..1 of digits at random sizes and positions, resampled bilinearly.

    With ``distort`` (for training) they are also rotated, sheared and stretched.
    """
    count = len(indices)
    width = generator.uniform(28, 42, count)
    turn = generator.uniform(-0.22, 0.22, count) * distort
    shear = generator.uniform(-0.2, 0.2, count) * distort
    stretch = 1 + generator.uniform(-0.12, 0.12, count) * distort
    shift = generator.uniform(-0.5, 0.5, (2, count)) * (IMAGE_SIZE - width) * 0.9
    axis = np.arange(IMAGE_SIZE) - (IMAGE_SIZE - 1) / 2
    x = (axis[None, None, :] - shift[0][:, None, None]) * (8 / width * stretch)[:, None, None]
    y = (axis[None, :, None] - shift[1][:, None, None]) * (8 / width)[:, None, None]
    cos, sin = np.cos(turn)[:, None, None], np.sin(turn)[:, None, None]
    column = np.clip(x * cos + y * (sin + shear[:, None, None]) + 4.5, 0, 8.999)
    row = np.clip(y * cos - x * sin + 4.5, 0, 8.999)
    left, top = column.astype(np.int64), row.astype(np.int64)
    right_part, low_part = (column - left).astype(np.float32), (row - top).astype(np.float32)
    images = _digits()[0][indices].reshape(count, 100)
    corner = (top * 10 + left).reshape(count, -1)

    def at(offset: int) -> NDArray[np.float32]:
        return np.take_along_axis(images, corner + offset, 1).reshape(right_part.shape)

    upper = at(0) * (1 - right_part) + at(1) * right_part
    lower = at(10) * (1 - right_part) + at(11) * right_part
    return upper * (1 - low_part) + lower * low_part


def _stripes() -> NDArray[np.float32]:
    """A diagonal stripe pattern ``(48, 48)`` of period 4, with values 1.0 and 0.3."""
    rows, columns = np.indices((IMAGE_SIZE, IMAGE_SIZE))
    return np.where((rows + columns) % 4 < 2, 1.0, 0.3).astype(np.float32)


def _box_blur(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean over 3 x 3 pixels, edges repeated; ``(n, 48, 48, 3)``."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) / 9


def draw(
    shapes: NDArray[np.int64],
    colors: NDArray[np.int64],
    sizes: NDArray[np.int64],
    backgrounds: NDArray[np.int64],
    digits: NDArray[np.int64],
    digit_colors: NDArray[np.int64],
    generator: np.random.Generator,
    *,
    test: bool = False,
    styles: Sequence[str] | None = None,
) -> NDArray[np.uint8]:
    """Draw a batch of scenes.

    Args:
        shapes, colors, sizes: ``(n, 9)`` indices per cell, row by row; shape -1 is an empty cell.
        backgrounds: ``(n,)`` indices.
        digits: ``(n,)`` index of a handwritten digit that fills the image, or -1.
        digit_colors: ``(n,)`` indices, ignored without a digit.
        generator: source of all randomness in the pixels: mask variants, shades of colours, noise.
        test: use the mask variants of the test split, and do not distort digits.
        styles: one of ``STYLES`` per image; all plain if None.

    Returns:
        ``(n, 48, 48, 3)`` RGB.
    """
    count = len(backgrounds)
    kinds = np.array(styles if styles is not None else ["plain"] * count)
    bank = shape_masks(test=test, outline=False)
    variant = generator.integers(bank.shape[2], size=(count, 9))
    masks = bank[shapes.clip(0), sizes, variant]  # (n, 9, 16, 16)
    outlined = kinds == "outline"
    if outlined.any():
        rings = shape_masks(test=test, outline=True)
        masks[outlined] = rings[shapes[outlined].clip(0), sizes[outlined], variant[outlined]]
    masks = masks * (shapes >= 0)[..., None, None]
    masks = masks.reshape(count, 3, 3, CELL, CELL).transpose(0, 1, 3, 2, 4).reshape(count, IMAGE_SIZE, IMAGE_SIZE)
    tones = _COLOR_VALUES[colors] + generator.uniform(-15, 15, (count, 9, 3)).astype(np.float32)
    ink = tones.reshape(count, 3, 3, 3).repeat(CELL, 1).repeat(CELL, 2)  # (n, 48, 48, 3)
    written = np.nonzero(digits >= 0)[0]
    if len(written):
        masks[written] = _digit_masks(digits[written], generator, distort=not test)
        tone = _COLOR_VALUES[digit_colors[written]] + generator.uniform(-15, 15, (len(written), 3))
        ink[written] = tone[:, None, None, :]
    if (striped := kinds == "striped").any():
        masks[striped] *= _stripes()
    if (faint := kinds == "faint").any():
        masks[faint] *= 0.5
    ground = _BACKGROUND_VALUES[backgrounds] + generator.uniform(-8, 8, (count, 3)).astype(np.float32)
    ground = ground[:, None, None, :]
    images = ground + (ink - ground) * masks[..., None]
    if (tinted := kinds == "tinted").any():
        images[tinted] *= _TINT
    if (blurred := kinds == "blurred").any():
        images[blurred] = _box_blur(_box_blur(images[blurred]))
    deviation = np.where(kinds == "noisy", 38.0, 5.0).astype(np.float32)[:, None, None]
    grain = generator.standard_normal((count, IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32) * deviation
    return (images + grain[..., None]).clip(0, 255).astype(np.uint8)
