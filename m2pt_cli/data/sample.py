"""A training sample: images and a conversation about them, independent of the source format.

Images are references that are opened when they are needed, so a large data set takes little memory. No torch.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from os.path import isdir, isfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, Protocol

from m2pt_cli.errors import InputError
from m2pt_cli.files.download import fetch, is_url

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_MARK = "<image>"

# Pillow's limit for a suspected decompression bomb: 89 million pixels, 268 MB once decoded.
MOST_PIXELS = 89_478_485
# When the shorter side of a very long and thin image is resized, the longer side grows without bound.
MOST_ASPECT = 200
_EXIF_ORIENTATION = 0x0112


class ImageReference(Protocol):
    """An image that is opened when it is needed; equal names mean equal images."""

    @property
    def name(self) -> str:
        """Identifies the image, also in messages: a path, a URL, a content hash, or the name of a drawn scene."""

    def open(self) -> Image:
        """The image in RGB. Raises InputError if it can't be read."""


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation; ``<image>`` in a user's text marks the position of an image."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True)
class Sample:
    """Images and a conversation; the turns contain ``<image>`` once per image."""

    id: str
    images: tuple[ImageReference, ...]
    turns: tuple[Turn, ...]
    task: str | None = None


class StoredImage:
    """An encoded image: its size can be read without decoding it, and it may be damaged."""

    name: str

    def source(self) -> Path | IO[bytes]:
        """The path, or an open file, of the encoded image."""
        raise NotImplementedError

    def open(self) -> Image:
        """The image in RGB. Raises InputError if it can't be read."""
        return decode_image(self.name, self.source())

    def size(self) -> tuple[int, int]:
        """``(width, height)`` from the header. Raises InputError if it is not an image."""
        return read_size(self.name, self.source())


@dataclass(frozen=True)
class FileImage(StoredImage):
    """An image in a file."""

    name: str
    path: Path

    def source(self) -> Path:
        return self.path


@dataclass(frozen=True)
class BytesImage(StoredImage):
    """An encoded image in memory."""

    name: str
    data: bytes = field(repr=False)

    def source(self) -> IO[bytes]:
        return io.BytesIO(self.data)


@dataclass(frozen=True)
class UrlImage:
    """An image at an http(s) URL, fetched each time it is opened."""

    name: str

    def open(self) -> Image:
        """The image in RGB. Raises InputError if it can't be fetched or read."""
        return decode_image(self.name, io.BytesIO(fetch(self.name)))


@dataclass(frozen=True)
class DecodedImage:
    """A decoded PIL image."""

    name: str
    image: Image = field(repr=False, compare=False)

    def open(self) -> Image:
        """The image in RGB."""
        return self.image.convert("RGB")


def holds_no_character(text: str) -> bool:
    """Whether a text contains a lone surrogate: JSON and command lines allow it, tokenizers and UTF-8 files do not."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def image_reference(image: str | Path | Image, *, folder: Path, allow_url: bool = False) -> ImageReference:
    """Return the reference to an image that the user gave: a path (relative to ``folder``), a URL, or a PIL image.

    Raises:
        InputError: the file does not exist, or ``image`` is a URL and ``allow_url`` is False.
    """
    if not isinstance(image, (str, Path)):
        # The name must follow the content: questions about images of equal names share one forward pass.
        digest = hashlib.sha256(repr((image.mode, image.size)).encode() + image.tobytes()).hexdigest()
        return DecodedImage(f"image {digest[:16]}", image)
    if is_url(str(image)):
        if not allow_url:
            raise InputError(f"image {image} is a URL", "give a file, or allow fetching with --allow-url")
        return UrlImage(str(image))
    path = folder / image
    if not isfile(path):  # returns False for a name that is too long, where Path.is_file raises
        what = "is a folder" if isdir(path) else "does not exist"
        raise InputError(f"image {path} {what}", "check the path of the image")
    return FileImage(str(path), path)


def image_size(reference: ImageReference) -> tuple[int, int]:
    """``(width, height)`` of an image, from the header alone if possible. Raises InputError if it can't be read."""
    if isinstance(reference, StoredImage):
        return reference.size()
    return reference.open().size


def read_size(name: str, source: Path | IO[bytes]) -> tuple[int, int]:
    """``(width, height)`` that `decode_image` would return for an encoded image, without decoding its pixels.

    Raises:
        InputError: the image is missing, is not an image, has more than `MOST_PIXELS` pixels, or one side is more than
            `MOST_ASPECT` times the other.
    """
    from PIL import Image

    try:
        with Image.open(source) as image:
            width, height = image.size
            _require_bounded(name, width, height)
            return (height, width) if _orientation(image) >= 5 else (width, height)
    except (*_UNREADABLE, Image.DecompressionBombError) as error:
        raise _unreadable(name, error) from None


def decode_image(name: str, source: Path | IO[bytes]) -> Image:
    """Decode an image to RGB and apply its EXIF orientation (as transformers' ``load_image``).

    Raises:
        InputError: the image is missing, damaged or truncated, has more than `MOST_PIXELS` pixels, or one side is more
            than `MOST_ASPECT` times the other.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(source) as image:
            _require_bounded(name, *image.size)
            turned = _orientation(image) > 1
            image.load()
            upright = ImageOps.exif_transpose(image) if turned else image
            if upright.mode.startswith("I;16"):  # 16-bit grey: a plain conversion would clip it to white
                upright = upright.convert("I").point(lambda value: value * (1 / 256)).convert("L")
            return upright.convert("RGB")
    except (*_UNREADABLE, Image.DecompressionBombError) as error:
        raise _unreadable(name, error) from None


def _orientation(image: Image) -> int:
    """The EXIF orientation in the header, 1 to 8 (5 and up: width and height are swapped); 1 if there is none."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # getexif() would decode the whole image to look for EXIF data after the pixels
    return int(image.getexif().get(_EXIF_ORIENTATION, 1))


# What Pillow's decoders raise on damaged files, in addition to DecompressionBombError.
_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError)
_REPAIR_HINT = "open it in a viewer; copy it again, or save it as PNG or JPEG"


def _unreadable(name: str, error: BaseException) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"image {name} does not exist", "check the path of the image")
    if type(error).__name__ == "UnidentifiedImageError":
        return InputError(f"image {name} can't be read: not an image, or damaged", _REPAIR_HINT)
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return InputError(f"image {name} can't be read: {reason}", _REPAIR_HINT)


def _require_bounded(name: str, width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise InputError(f"image {name} has {width} x {height} pixels, more than {MOST_PIXELS:,}", "make it smaller")
    if max(width, height) > MOST_ASPECT * min(width, height):
        raise InputError(
            f"image {name} is {width} x {height}: one side is over {MOST_ASPECT} times the other", "cut it into pieces"
        )
