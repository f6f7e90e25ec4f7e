"""Convert images of more than 8 bits per channel to 8 bits.

Pillow itself decodes 16-bit colour to 8 bits. It keeps greyscale in the modes ``I;16`` (16 bits), ``I`` (32 bits) and
``F`` (floats), and its own conversion from them clips values at 255: a photograph becomes white. Here levels are
scaled by the range of the file's format. Where the format names no range, values tell it only if they leave no doubt;
otherwise the image is refused by the name of its mode.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from m2pt_cli.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

_FULL = 65_535
# The maximum of 8-bit data in a wider type; an image of a wider range that stays below it would be black.
_BYTE = 255
# A 32-bit image whose maximum is below the first is too dark for 16 bits: it may be a sensor's 10 or 12 bits, or
# depth. A float image whose maximum is between 1 and the second is too dark for 0 to 255.
_LEAST_SIXTEEN, _LEAST_FLOAT = 4_096, 16.0
_BITS_PER_SAMPLE, _SAMPLE_FORMAT, _PHOTOMETRIC = 258, 339, 262
_SIGNED, _WHITE_IS_ZERO = 2, 0
# Formats whose readers in Pillow scale every depth to 16 bits, or support no other.
_SIXTEEN_BITS = ("PNG", "PPM", "JPEG2000")
_HINT = "save it with 8 bits a channel, as PNG or JPEG"


def is_wide(image: Image) -> bool:
    """Return whether an image has a mode with more than 8 bits per channel."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def narrowed(name: str, image: Image) -> Image:
    """Convert a wide image to mode ``L``, its levels scaled to 0 to 255 and rounded.

    ============================  ==========================================================================
    16-bit PNG, TIFF, JPEG 2000,  0 to 65,535 (a TIFF of 12 bits: 0 to 4,095), whatever the values are
    PPM, an image in memory
    32-bit integers               8 bits where no value is above 255, 16 bits where the largest is 4,096 to 65,535
    floats                        0 to 1, or 0 to 255 where the largest value is 16 or more
    ============================  ==========================================================================

    Args:
        name: the image's name in messages.
        image: decoded, of mode ``I;16…``, ``I`` or ``F``.

    Raises:
        InputError: the range is unknown (negative values, NaN, other ranges); the message names the mode.
    """
    from PIL import Image as Images

    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    top = _top(image, values, tags)
    if top is None:
        low, high = (f"{float(value):g}" for value in (values.min(), values.max()))
        raise InputError(
            f"image {name} has the mode {image.mode} with values from {low} to {high}: which is white is unknown",
            _HINT,
        )
    levels = np.rint(values.astype(np.float32) * np.float32(_BYTE / top)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO and image.mode != "F":
        levels = _BYTE - levels
    return Images.fromarray(levels)


def _top(image: Image, values: NDArray[np.generic], tags: dict[int, tuple[int, ...]]) -> int | None:
    """Return the value of white; None if it is unknown."""
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and np.isfinite(high)):  # NaN compares as False
        return None
    if image.mode == "F":
        return 1 if high <= 1 else _BYTE if _LEAST_FLOAT <= high <= _BYTE else None
    if image.mode != "I":
        if image.format == "FITS":  # signed, with an offset that Pillow does not read
            return None
        bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
        return (1 << bits) - 1
    if image.format in _SIXTEEN_BITS:
        return _FULL
    if high <= _BYTE:
        return _BYTE
    is_signed_short = tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED and tags.get(_BITS_PER_SAMPLE, (32,))[0] == 16
    return _FULL if _LEAST_SIXTEEN <= high <= _FULL and not is_signed_short else None
