"""Preprocess images to pixel values: the same values as transformers' PIL image processors, but faster.

Pillow resizes, as in transformers. Rescaling and normalising are one look-up in a table of 256 values per channel. The
image processor itself computes the table, so the results are bit-identical.
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
    """How an image is resized, cropped or padded to ``size``.

    Attributes:
        size: ``(height, width)`` of the result.
        pad: pad the image to a square first, on both sides, with ``fill`` (LLaVA-1.5's ``expand2square``).
        shortest: resize the shorter side to this, then centre-crop; None resizes both sides to ``size``.
        resample: Pillow's resampling filter.
        fill: the padding colour, the image processor's mean colour.
    """

    size: tuple[int, int]
    pad: bool
    shortest: int | None
    resample: int
    fill: tuple[int, int, int]

    def apply(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resize, crop or pad an RGB image; returns ``(height, width, 3)``."""
        if self.pad and image.width != image.height:
            image = _pad_to_square(image, self.fill)
        height, width = self.size
        if self.shortest is not None:
            # Round as transformers does: the longer side is truncated to an integer.
            short, long = sorted(image.size)
            other = int(self.shortest * long / short)
            width, height = (self.shortest, other) if image.width <= image.height else (other, self.shortest)
        if image.size != (width, height):
            image = image.resize((width, height), resample=self.resample)  # type: ignore[arg-type]
        return _centre_crop(np.asarray(image), *self.size)


class PixelPreparer:
    """Turns RGB images into pixel values.

    Args:
        image_processor: transformers' PIL image processor of the base (CLIP's, SigLIP's or LLaVA's).
        fit: ``crop`` (resize the shortest edge, then centre-crop: M²PT), ``pad`` (pad to a square with the mean colour:
            LLaVA-1.5), or ``base`` (the image processor's own settings).

    Raises:
        SettingsError: an unknown fit.
    """

    def __init__(self, image_processor: Any, *, fit: str) -> None:
        self.fit = fit_of(image_processor, fit)
        self._table = value_table(image_processor)

    def pixels(self, image: Image.Image) -> NDArray[np.float32]:
        """Pixel values ``(3, height, width)`` of an RGB image."""
        return self.values(self.fit.apply(image))

    def values(self, fitted: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pixel values ``(3, height, width)`` of an image ``(height, width, 3)`` that `Fit.apply` returned."""
        values = np.empty((3, *fitted.shape[:2]), np.float32)
        for channel in range(3):
            np.take(self._table[channel], fitted[:, :, channel], out=values[channel], mode="clip")
        return values


def fit_of(image_processor: Any, fit: str) -> Fit:
    """The `Fit` of ``crop``, ``pad`` or ``base`` for an image processor. Raises SettingsError for anything else."""
    if fit not in IMAGE_FITS:
        raise SettingsError(f"--image-fit {fit!r} is not one of {', '.join(IMAGE_FITS)}{closest(fit, IMAGE_FITS)}")
    size = _target_size(image_processor)
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
    """``(3, 256)``: the image processor's output for each value 0..255 of each channel."""
    values = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (3, 256, 1))
    if image_processor.do_rescale:
        values = image_processor.rescale(values, image_processor.rescale_factor)
    if image_processor.do_normalize:
        values = image_processor.normalize(values, image_processor.image_mean, image_processor.image_std)
    return np.ascontiguousarray(values[:, :, 0], np.float32)


def _target_size(image_processor: Any) -> tuple[int, int]:
    chosen = image_processor.crop_size if image_processor.do_center_crop else image_processor.size
    if chosen.get("height") and chosen.get("width"):
        return int(chosen["height"]), int(chosen["width"])
    return int(chosen["shortest_edge"]), int(chosen["shortest_edge"])


def _pad_to_square(image: Image.Image, fill: tuple[int, int, int]) -> Image.Image:
    side = max(image.size)
    square = Image.new("RGB", (side, side), fill)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _centre_crop(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]
