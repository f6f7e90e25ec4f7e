"""A sample, independent of its source: images and a conversation about them.

Images are references that are opened when needed, so that a large data set takes little memory; torch is not imported.
"""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from os.path import isdir, isfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, Protocol, TypeVar

from m2pt_cli.data.image_metadata import orientation, upright, without_metadata
from m2pt_cli.data.pillow_messages import silence_pillow
from m2pt_cli.errors import InputError
from m2pt_cli.files.download import fetch, is_url

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_MARK = "<image>"

# Pillow's own limit for a suspected decompression bomb: 89 million pixels, 268 MB once decoded.
MOST_PIXELS = 89_478_485
# Limit of the aspect ratio: resizing the shorter side makes a longer image too large.
MOST_ASPECT = 200


class ImageReference(Protocol):
    """An image that is opened when needed."""

    @property
    def name(self) -> str:
        """The name shown in messages: a path, or the name of a drawn image."""

    def open(self) -> Image:
        """Return the image in RGB. Raises InputError if it can't be read."""


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation; ``<image>`` in a user's text stands for an image.

    An answer that is not ``supervised`` is context for the model and not trained on.
    """

    role: Literal["user", "assistant"]
    text: str
    supervised: bool = True


@dataclass(frozen=True)
class Sample:
    """Images and a conversation; the turns contain ``<image>`` once per image."""

    id: str
    images: tuple[ImageReference, ...]
    turns: tuple[Turn, ...]
    task: str | None = None


class StoredImage(ABC):
    """An encoded image: its size is known without decoding it, and it may be damaged."""

    name: str

    @abstractmethod
    def source(self) -> Path | IO[bytes]:
        """The file or stream of the encoded image."""

    def open(self) -> Image:
        """Return the image in RGB. Raises InputError if it can't be read."""
        return decode_image(self.name, self.source())

    def size(self) -> tuple[int, int]:
        """Return ``(width, height)`` from the header. Raises InputError if it is not an image."""
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
        """Return the image in RGB. Raises InputError if it can't be fetched or read."""
        return decode_image(self.name, io.BytesIO(fetch(self.name)))


@dataclass(frozen=True)
class DecodedImage:
    """A PIL image in memory."""

    name: str
    image: Image = field(repr=False, compare=False)

    def open(self) -> Image:
        """Return the image in RGB. Raises InputError if its mode does not define its range."""
        return _rgb(self.name, self.image)


def holds_no_character(text: str) -> bool:
    """Return whether a text contains an unpaired surrogate, which is invalid Unicode for tokenizers and files."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def image_reference(image: str | Path | Image, *, folder: Path, allow_url: bool = False) -> ImageReference:
    """Return a reference to an image: a path (relative to ``folder``), a URL, or a PIL image.

    Raises:
        InputError: there is no such file, or it is a URL and ``allow_url`` is False.
    """
    if not isinstance(image, (str, Path)):
        # Questions with equal image names share computation, so the name is derived from the content.
        digest = hashlib.sha256(repr((image.mode, image.size)).encode() + image.tobytes()).hexdigest()
        return DecodedImage(f"image {digest[:16]}", image)
    if is_url(str(image)):
        if not allow_url:
            raise InputError(f"image {image} is a URL", "give a file, or allow fetching with --allow-url")
        return UrlImage(str(image))
    path = folder / image
    if not isfile(path):  # False for a name that is too long; Path.is_file raises
        what = "is a folder" if isdir(path) else "does not exist"
        raise InputError(f"image {path} {what}", "check the path of the image")
    return FileImage(str(path), path)


def image_size(reference: ImageReference) -> tuple[int, int]:
    """Return ``(width, height)``, from the header alone if possible. Raises InputError if it can't be read."""
    if isinstance(reference, StoredImage):
        return reference.size()
    return reference.open().size


def read_size(name: str, source: Path | IO[bytes]) -> tuple[int, int]:
    """Return the ``(width, height)`` that `decode_image` would give, without decoding the pixels.

    Raises:
        InputError: missing, not an image, more than `MOST_PIXELS`, or longer than `MOST_ASPECT` times its width.
    """
    return _read(name, source, _size)


def decode_image(name: str, source: Path | IO[bytes]) -> Image:
    """Decode an image to RGB and apply its EXIF orientation (as transformers' ``load_image``).

    Broken metadata is ignored. Images of more than 8 bits per channel are scaled (`m2pt_cli.data.wide_pixels`).

    Raises:
        InputError: missing, damaged, truncated, of unknown range, more than `MOST_PIXELS`, or longer than
            `MOST_ASPECT` times its width.
    """
    return _read(name, source, _decoded)


_Read = TypeVar("_Read")


def _read(name: str, source: Path | IO[bytes], read: Callable[[str, Path | IO[bytes]], _Read]) -> _Read:
    """Call ``read(name, source)``; if it fails, retry without metadata. Every failure is an InputError."""
    silence_pillow()
    try:
        return read(name, source)
    except InputError:
        raise
    except Exception as error:  # a decoder of damaged data may raise anything
        pixels = without_metadata(source)
        if pixels is not None:
            try:
                return read(name, io.BytesIO(pixels))
            except InputError:
                raise
            except Exception:
                pass  # the error of the original file is more helpful
        raise _unreadable(name, error) from None


def _size(name: str, source: Path | IO[bytes]) -> tuple[int, int]:
    from PIL import Image

    with Image.open(source) as image:
        width, height = image.size
        _require_bounded(name, width, height)
        # For a TIFF, Pillow gives the size after applying the orientation.
        is_sideways = image.format != "TIFF" and orientation(image) >= 5
        return (height, width) if is_sideways else (width, height)


def _decoded(name: str, source: Path | IO[bytes]) -> Image:
    from PIL import Image

    with Image.open(source) as image:
        _require_bounded(name, *image.size)
        is_turned = orientation(image) > 1
        image.load()
        # Read again: Pillow applies a TIFF's orientation when it loads it.
        return upright(_rgb(name, image), orientation(image) if is_turned else 1)


def _rgb(name: str, image: Image) -> Image:
    from m2pt_cli.data.wide_pixels import is_wide, narrowed

    silence_pillow()
    pixels = (narrowed(name, image) if is_wide(image) else image).convert("RGB")
    pixels.info.clear()  # drop the metadata, broken or not
    return pixels


_AGAIN = "open it in a viewer; copy it again, or save it as PNG or JPEG"


def _unreadable(name: str, error: BaseException) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"image {name} does not exist", "check the path of the image")
    if type(error).__name__ == "UnidentifiedImageError":
        return InputError(f"image {name} can't be read: not an image, or damaged", _AGAIN)
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return InputError(f"image {name} can't be read: {reason}", _AGAIN)


def _require_bounded(name: str, width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise InputError(f"image {name} has {width} x {height} pixels, more than {MOST_PIXELS:,}", "make it smaller")
    if max(width, height) > MOST_ASPECT * min(width, height):
        raise InputError(
            f"image {name} is {width} x {height}: one side is over {MOST_ASPECT} times the other", "cut it into pieces"
        )
