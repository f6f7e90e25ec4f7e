"""Images that a data set names, found in the folders the user allowed and nowhere else."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m2pt_cli.data.sample import BytesImage, DecodedImage, FileImage, ImageReference, StoredImage, UrlImage
from m2pt_cli.data.validation import InvalidRow, MissingImage
from m2pt_cli.errors import InputError
from m2pt_cli.files.download import is_url


class ImageFolders:
    """Turns what a row holds as its image into a reference.

    A data set may come from anyone: a path that leaves the folders, by ``..``, as an absolute path or through a
    symbolic link, is a fault, so that training can't be made to read other files.

    Args:
        folders: tried in this order.
        allow_url: whether http(s) URLs may be fetched.
        subfolders: looked into in each folder as well, each as a folder of its own; those that are not there are
            passed over.

    Attributes:
        folders: all that are looked into.

    Raises:
        InputError: a folder does not exist.
    """

    def __init__(self, folders: Sequence[Path], *, allow_url: bool = False, subfolders: Sequence[str] = ("",)) -> None:
        for folder in folders:
            if not folder.is_dir():
                what = "is not a folder" if folder.exists() else "does not exist"
                raise InputError(f"--images {folder} {what}", "name the folder that holds the images")
        self.folders = [folder / sub for folder in folders for sub in subfolders if (folder / sub).is_dir()]
        self._roots = [(str(folder), os.path.realpath(folder)) for folder in self.folders]
        self._allow_url = allow_url
        self._real_parents: dict[str, str] = {}

    def find(self, value: Any) -> ImageReference:
        """The image that ``value`` stands for: a path, a URL, encoded bytes, or a mapping with ``path`` or ``bytes``.

        Raises:
            InvalidRow: it can't be found, lies outside the folders, or is nothing that names an image.
        """
        if isinstance(value, str):
            return self._named(value)
        if isinstance(value, Mapping):
            held = value.get("bytes") or value.get("path") or value.get("url")
            if held is None:
                raise InvalidRow(
                    f"an image with the keys {', '.join(map(str, value)) or 'none'}: path or bytes expected"
                )
            return self.find(held)
        if isinstance(value, StoredImage):
            return value
        if isinstance(value, bytes):
            return BytesImage(f"image {hashlib.sha256(value).hexdigest()[:16]}", value)
        if hasattr(value, "convert") and hasattr(value, "tobytes"):  # a decoded PIL image
            digest = hashlib.sha256(repr((value.mode, value.size)).encode() + value.tobytes()).hexdigest()
            return DecodedImage(f"image {digest[:16]}", value)
        raise InvalidRow(f"an image of type {type(value).__name__}: a path was expected")

    def _named(self, name: str) -> ImageReference:
        if is_url(name):
            if not self._allow_url:
                raise InvalidRow(f"image {name[:200]} is a URL: allow fetching with --allow-url")
            return UrlImage(name)
        if name.startswith("data:"):
            return _embedded(name)
        if not self._roots:
            raise InvalidRow(f"image {name} is a path, and this data set has no folder: name one with --images")
        path = self.locate(name)
        if path is None:
            raise MissingImage(name, self._roots[0][0])
        return FileImage(str(path), path)

    def locate(self, name: str) -> Path | None:
        """The file called ``name`` in the first folder that holds it; None where none does.

        Raises:
            InvalidRow: the name leads out of the folders.
        """
        is_outside = False
        for folder, root in self._roots:
            path = os.path.join(folder, name)  # an absolute name stands for itself
            try:
                found = self._inside(path, root)
            except (OSError, ValueError):
                continue
            if found:
                return Path(path)
            is_outside |= found is False
        if is_outside:
            raise InvalidRow(f"image {name} lies outside {self._roots[0][0]}: refused")
        return None

    def _inside(self, path: str, root: str) -> bool | None:
        """True: a file within ``root``; False: it leads out of it; None: it is not there."""
        parent, base = os.path.split(path)
        real = self._real_parents.get(parent)
        if real is None:
            real = self._real_parents[parent] = os.path.realpath(parent)
        if not _within(real, root) or base in ("", ".", ".."):
            return False if base else None
        target = os.path.join(real, base)
        try:
            mode = os.lstat(target).st_mode
            if stat.S_ISLNK(mode):
                target = os.path.realpath(target)
                if not _within(target, root):
                    return False
                mode = os.lstat(target).st_mode
        except FileNotFoundError:
            return None
        return True if stat.S_ISREG(mode) else None


def _within(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def _embedded(uri: str) -> BytesImage:
    head, _, body = uri.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError
        content = base64.b64decode(body, validate=True)
    except (ValueError, binascii.Error):
        raise InvalidRow(f"image {head[:40]}…: a data URI in base64 was expected") from None
    return BytesImage(f"image {hashlib.sha256(content).hexdigest()[:16]}", content)
