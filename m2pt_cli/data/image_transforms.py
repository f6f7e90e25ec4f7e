"""An image as the pixel values of a vision tower: the same numbers as transformers' PIL image processors, faster.

Resizing is Pillow's, as there; rescaling and normalising are one look-up in a table of 256 values per channel, which
the image processor itself computes, so that not a bit differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m2pt_cli.errors import SettingsError
from m2pt_cli.settings import IMAGE_FITS, closest


@dataclass(frozen=True)
class Fit:
    """How an image becomes ``size``: ``(height, width)``.

    Attributes:
        pad: made square first, the mean colour on both sides (LLaVA-1.5's ``expand2square``).
        shortest: its shorter side is resized to this, and the centre cut out; None resizes both sides to ``size``.
        resample: Pillow's filter.
        fill: the mean colour.
    """

    size: tuple[int, int]
    pad: bool
    shortest: int | None
    resample: int
    fill: tuple[int, int, int]

    def apply(self, image: Image.Image) -> NDArray[np.uint8]:
        """``(height, width, 3)`` of an RGB image."""
        if self.pad and image.width != image.height:
            image = _squared(image, self.fill)
        height, width = self.size
        if self.shortest is not None:
            # As transformers rounds it: the longer side is cut to a whole number.
            short, long = sorted(image.size)
            other = int(self.shortest * long / short)
            width, height = (self.shortest, other) if image.width <= image.height else (other, self.shortest)
        if image.size != (width, height):
            image = image.resize((width, height), resample=self.resample)  # type: ignore[arg-type]
        return _centre(np.asarray(image), *self.size)


class PixelPreparer:
    """Turns RGB images into pixel values.

    Args:
        image_processor: transformers' PIL image processor of the base (CLIP's, SigLIP's or LLaVA's).
        fit: ``crop`` (shortest edge, centre crop: M²PT), ``pad`` (square with the mean colour: LLaVA-1.5), or ``base``
            (as the image processor is set).

    Raises:
        SettingsError: an unknown fit.
    """

    def __init__(self, image_processor: Any, *, fit: str) -> None:
        self.fit = fit_of(image_processor, fit)
        self._table = value_table(image_processor)

    def pixels(self, image: Image.Image) -> NDArray[np.float32]:
        """``(3, height, width)`` of an RGB image."""
        return self.values(self.fit.apply(image))

    def values(self, fitted: NDArray[np.uint8]) -> NDArray[np.float32]:
        """``(3, height, width)`` of a fitted image ``(height, width, 3)``."""
        values = np.empty((3, *fitted.shape[:2]), np.float32)
        for channel in range(3):
            np.take(self._table[channel], fitted[:, :, channel], out=values[channel], mode="clip")
        return values


def fit_of(image_processor: Any, fit: str) -> Fit:
    """What ``crop``, ``pad`` or ``base`` means for an image processor. Raises SettingsError for anything else."""
    if fit not in IMAGE_FITS:
        raise SettingsError(f"--image-fit {fit!r} is not one of {', '.join(IMAGE_FITS)}{closest(fit, IMAGE_FITS)}")
    size = _target(image_processor)
    mean = image_processor.image_mean
    fill = tuple(int(value * 255) for value in mean) if image_processor.do_normalize else (127, 127, 127)
    shortest = image_processor.size.get("shortest_edge")
    return Fit(
        size=size,
        pad=fit == "pad" or (fit == "base" and bool(getattr(image_processor, "do_pad", None))),
        shortest=min(size) if fit == "crop" and shortest is None else None if fit == "pad" else shortest,
        resample=int(image_processor.resample),
        fill=(fill[0], fill[1], fill[2]),
    )


def value_table(image_processor: Any) -> NDArray[np.float32]:
    """``(3, 256)``: what the image processor makes of every value of a channel, computed by itself."""
    values = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (3, 256, 1))
    if image_processor.do_rescale:
        values = image_processor.rescale(values, image_processor.rescale_factor)
    if image_processor.do_normalize:
        values = image_processor.normalize(values, image_processor.image_mean, image_processor.image_std)
    return np.ascontiguousarray(values[:, :, 0], np.float32)


def _target(image_processor: Any) -> tuple[int, int]:
    chosen = image_processor.crop_size if image_processor.do_center_crop else image_processor.size
    if chosen.get("height") and chosen.get("width"):
        return int(chosen["height"]), int(chosen["width"])
    return int(chosen["shortest_edge"]), int(chosen["shortest_edge"])


def _squared(image: Image.Image, fill: tuple[int, int, int]) -> Image.Image:
    side = max(image.size)
    square = Image.new("RGB", (side, side), fill)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _centre(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]
