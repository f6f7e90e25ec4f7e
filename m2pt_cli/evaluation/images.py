"""Images that a data set only names: files of ``--images`` folders, or URLs where the user allows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import Request as UrlRequest
from urllib.request import urlopen

from m2pt_cli.data.samples import ImageReference
from m2pt_cli.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

# COCO as its zip files unpack.
_SUBFOLDERS = ("", "images", "val2014", "train2014", "val2017", "train2017", "trainval2017")
_MOST_BYTES = 64 * 1024 * 1024
_TIMEOUT = 30.0


@dataclass(frozen=True)
class FileImage:
    """An image in a file."""

    name: str
    path: Path

    def open(self) -> Image:
        """The image in RGB. Raises InputError where it can't be read."""
        return decode(self.name, self.path)


@dataclass(frozen=True)
class MissingImage:
    """An image that was found nowhere: its question fails, the others go on."""

    name: str
    num_folders: int

    def open(self) -> Image:
        """Raises InputError."""
        raise InputError(f"image {self.name} is in none of the {self.num_folders} folders looked at", "check --images")


@dataclass(frozen=True)
class UrlImage:
    """An image behind an http(s) URL, fetched each time it is opened."""

    name: str
    url: str

    def open(self) -> Image:
        """The image in RGB. Raises InputError where it can't be fetched or decoded."""
        try:
            with urlopen(UrlRequest(self.url, headers={"User-Agent": "m2pt"}), timeout=_TIMEOUT) as response:
                content = response.read(_MOST_BYTES + 1)
        except (OSError, ValueError) as error:
            raise InputError(f"image {self.url} can't be fetched: {error}") from None
        if len(content) > _MOST_BYTES:
            raise InputError(f"image {self.url} is larger than {_MOST_BYTES >> 20} MiB")
        return decode(self.name, BytesIO(content))


def decode(name: str, source: Path | BytesIO) -> Image:
    """Decode an image to RGB.

    Raises:
        InputError: it is missing, damaged, or larger than Pillow's guard against decompression bombs allows.
    """
    from PIL import Image

    try:
        with Image.open(source) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = (str(error).splitlines() or [error.__class__.__name__])[0]
        raise InputError(f"image {name} can't be read: {reason}") from None


class ImageFolders:
    """Finds images by name.

    Args:
        folders: where to look, in them and in the folders COCO's zip files unpack to.
        allow_url: whether an image that is in no folder may be fetched.
        needed_by: the benchmark, for messages.

    Raises:
        InputError: a folder does not exist, or there is neither a folder nor leave to fetch.
    """

    def __init__(self, folders: Sequence[Path], allow_url: bool, *, needed_by: str) -> None:
        for folder in folders:
            if not folder.is_dir():
                raise InputError(f"--images {folder} is no folder", "name the folder that holds the images")
        if not folders and not allow_url:
            raise InputError(
                f"--bench {needed_by} names its images but does not hold them: no --images was given",
                "--images DIR with the COCO images, or --allow-url to fetch each by its link",
            )
        self._folders = [folder / sub for folder in folders for sub in _SUBFOLDERS if (folder / sub).is_dir()]
        self._allow_url = allow_url

    def find(self, name: str, link: str | None) -> ImageReference:
        """The image called ``name``; one that is nowhere fails when it is opened, and its question with it."""
        path = Path(name)
        is_inside = not path.is_absolute() and ".." not in path.parts
        for folder in self._folders:
            for candidate in (folder / path, folder / path.name) if is_inside else ():
                if candidate.is_file():
                    return FileImage(name, candidate)
        if self._allow_url and link and urlsplit(link).scheme in ("http", "https"):
            return UrlImage(name, link)
        return MissingImage(name, len(self._folders))
