"""Find the images of a data set, only in the folders that the user allowed."""

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
    """Converts the image value of a row to a reference.

    A data set may be untrusted: a path that leads out of the folders (through ``..``, as an absolute path or through a
    symbolic link) is refused, so that a data set can't make training read other files.

    Args:
        folders: searched in this order.
        allow_url: whether http(s) URLs may be fetched.
        subfolders: paths relative to each folder, searched instead of the folder itself; ``""`` is the folder itself.
            Those that do not exist are skipped.

    Attributes:
        folders: all existing combinations of a folder and a subfolder, in the order of the search.

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
        """Return the reference to an image.

        Args:
            value: a path, a URL, a data URI, encoded bytes, a PIL image, a `StoredImage`, or a mapping with ``bytes``,
                ``path`` or ``url``.

        Raises:
            InvalidRow: the image does not exist, is outside the folders, or ``value`` has another type.
        """
        if isinstance(value, str):
            return self._from_string(value)
        if isinstance(value, Mapping):
            image = value.get("bytes") or value.get("path") or value.get("url")
            if image is None:
                raise InvalidRow(
                    f"an image with the keys {', '.join(map(str, value)) or 'none'}: path or bytes expected"
                )
            return self.find(image)
        if isinstance(value, StoredImage):
            return value
        if isinstance(value, bytes):
            return BytesImage(f"image {hashlib.sha256(value).hexdigest()[:16]}", value)
        if hasattr(value, "convert") and hasattr(value, "tobytes"):  # a decoded PIL image
            digest = hashlib.sha256(repr((value.mode, value.size)).encode() + value.tobytes()).hexdigest()
            return DecodedImage(f"image {digest[:16]}", value)
        raise InvalidRow(f"an image of type {type(value).__name__}: a path was expected")

    def _from_string(self, name: str) -> ImageReference:
        if is_url(name):
            if not self._allow_url:
                raise InvalidRow(f"image {name[:200]} is a URL: allow fetching with --allow-url")
            return UrlImage(name)
        if name.startswith("data:"):
            return _from_data_uri(name)
        if not self._roots:
            raise InvalidRow(f"image {name} is a path, and this data set has no folder: name one with --images")
        path = self.locate(name)
        if path is None:
            raise MissingImage(name, self._roots[0][0])
        return FileImage(str(path), path)

    def locate(self, name: str) -> Path | None:
        """The path of the file ``name`` in the first folder that contains it; None if no folder does.

        Raises:
            InvalidRow: the name leads out of the folders.
        """
        is_outside = False
        for folder, root in self._roots:
            path = os.path.join(folder, name)  # an absolute name replaces the folder
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
        """True if ``path`` is a file inside ``root``, False if it leads out of ``root``, None if it does not exist."""
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


def _from_data_uri(uri: str) -> BytesImage:
    head, _, body = uri.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError
        content = base64.b64decode(body, validate=True)
    except (ValueError, binascii.Error):
        raise InvalidRow(f"image {head[:40]}…: a data URI in base64 was expected") from None
    return BytesImage(f"image {hashlib.sha256(content).hexdigest()[:16]}", content)
