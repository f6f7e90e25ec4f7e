"""A training sample: images and a conversation about them, wherever they came from.

Images are references, opened when they are needed, so that a large data set costs no memory and no torch.
"""

from __future__ import annotations

import hashlib
import io
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

# Pillow's own bound for a suspected decompression bomb: 89 million pixels, 268 MB once decoded.
MOST_PIXELS = 89_478_485
# An image this long and thin grows without bound when its shorter side is resized.
MOST_ASPECT = 200


class ImageReference(Protocol):
    """An image that is opened when it is needed."""

    @property
    def name(self) -> str:
        """What a report shows: a path, or the name of a drawn scene."""

    def open(self) -> Image:
        """The image in RGB. Raises InputError where it can't be read."""


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation; a user's text holds ``<image>`` where an image stands.

    An answer that is not ``supervised`` is read by the model and not trained on.
    """

    role: Literal["user", "assistant"]
    text: str
    supervised: bool = True


@dataclass(frozen=True)
class Sample:
    """Images and a conversation; the marks ``<image>`` in the turns count as many as ``images``."""

    id: str
    images: tuple[ImageReference, ...]
    turns: tuple[Turn, ...]
    task: str | None = None


class StoredImage:
    """An image in a file format: its size is known without decoding it, and it may be damaged."""

    name: str

    def source(self) -> Path | IO[bytes]:
        """Where the encoded image is."""
        raise NotImplementedError

    def open(self) -> Image:
        """The image in RGB. Raises InputError where it can't be read."""
        return decode_image(self.name, self.source())

    def size(self) -> tuple[int, int]:
        """``(width, height)`` from the header. Raises InputError where it is no image."""
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
    """An image behind an http(s) URL, fetched whenever it is opened."""

    name: str

    def open(self) -> Image:
        """The image in RGB. Raises InputError where it can't be fetched or read."""
        return decode_image(self.name, io.BytesIO(fetch(self.name)))


@dataclass(frozen=True)
class DecodedImage:
    """An image that a caller holds already."""

    name: str
    image: Image = field(repr=False, compare=False)

    def open(self) -> Image:
        """The image in RGB. Raises InputError where its mode does not tell its range."""
        return _rgb(self.name, self.image)


def holds_no_character(text: str) -> bool:
    """Whether a text holds half a surrogate pair: JSON and command lines can, no tokenizer and no file takes it."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def image_reference(image: str | Path | Image, *, folder: Path, allow_url: bool = False) -> ImageReference:
    """A reference to an image that the user named: a path (relative to ``folder``), a URL, or a PIL image.

    Raises:
        InputError: no such file, or a URL where ``allow_url`` is False.
    """
    if not isinstance(image, (str, Path)):
        # Equal names mean equal images to whoever shares work between questions, so the name follows the content.
        digest = hashlib.sha256(repr((image.mode, image.size)).encode() + image.tobytes()).hexdigest()
        return DecodedImage(f"image {digest[:16]}", image)
    if is_url(str(image)):
        if not allow_url:
            raise InputError(f"image {image} is a URL", "give a file, or allow fetching with --allow-url")
        return UrlImage(str(image))
    path = folder / image
    if not isfile(path):  # False for a name that is too long, where Path.is_file raises
        what = "is a folder" if isdir(path) else "does not exist"
        raise InputError(f"image {path} {what}", "check the path of the image")
    return FileImage(str(path), path)


def image_size(reference: ImageReference) -> tuple[int, int]:
    """``(width, height)``, from the header alone where that is possible. Raises InputError where it can't be read."""
    if isinstance(reference, StoredImage):
        return reference.size()
    return reference.open().size


def read_size(name: str, source: Path | IO[bytes]) -> tuple[int, int]:
    """``(width, height)`` of an encoded image as `decode_image` gives it, without decoding its pixels.

    Raises:
        InputError: missing, no image, more than `MOST_PIXELS`, or longer than `MOST_ASPECT` times its width.
    """
    return _read(name, source, _size)


def decode_image(name: str, source: Path | IO[bytes]) -> Image:
    """Decode an image to RGB, upright where its EXIF data says how it was held (as transformers' ``load_image``).

    Broken metadata is passed over. Images of more than 8 bits a channel are scaled (`m2pt_cli.data.wide_pixels`).

    Raises:
        InputError: missing, damaged, truncated, of unknown range, more than `MOST_PIXELS`, or longer than
            `MOST_ASPECT` times its width.
    """
    return _read(name, source, _decoded)


_Read = TypeVar("_Read")


def _read(name: str, source: Path | IO[bytes], read: Callable[[str, Path | IO[bytes]], _Read]) -> _Read:
    """``read(name, source)``; where it fails, of the file without metadata. Any failure is an InputError."""
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
                pass  # the error of the file itself says more
        raise _unreadable(name, error) from None


def _size(name: str, source: Path | IO[bytes]) -> tuple[int, int]:
    from PIL import Image

    with Image.open(source) as image:
        width, height = image.size
        _require_bounded(name, width, height)
        # Of a TIFF Pillow tells the size that it will have once upright.
        is_sideways = image.format != "TIFF" and orientation(image) >= 5
        return (height, width) if is_sideways else (width, height)


def _decoded(name: str, source: Path | IO[bytes]) -> Image:
    from PIL import Image

    with Image.open(source) as image:
        _require_bounded(name, *image.size)
        is_turned = orientation(image) > 1
        image.load()
        # Asked for again: a TIFF is upright once it is loaded.
        return upright(_rgb(name, image), orientation(image) if is_turned else 1)


def _rgb(name: str, image: Image) -> Image:
    from m2pt_cli.data.wide_pixels import is_wide, narrowed

    silence_pillow()
    pixels = (narrowed(name, image) if is_wide(image) else image).convert("RGB")
    pixels.info.clear()  # metadata, broken or not, goes no further
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
