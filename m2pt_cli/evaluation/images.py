"""Images that a benchmark names but does not contain: found in the user's folders, or downloaded if allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from m2pt_cli.data.images import ImageFolders
from m2pt_cli.data.sample import FileImage, ImageReference, UrlImage
from m2pt_cli.data.validation import InvalidRow
from m2pt_cli.errors import InputError
from m2pt_cli.evaluation.task import Example
from m2pt_cli.files.download import is_url

if TYPE_CHECKING:
    from PIL.Image import Image

# The folders that COCO's zip files unpack to.
_COCO_FOLDERS = ("", "images", "val2014", "train2014", "val2017", "train2017", "trainval2017")


@dataclass(frozen=True)
class MissingImage:
    """An image that was not found. `open` raises, so its question fails, and the other questions go on."""

    name: str
    reason: str
    hint: str

    @property
    def problem(self) -> InputError:
        """The error that `open` raises."""
        return InputError(self.reason, self.hint)

    def open(self) -> Image:
        """Raise InputError."""
        raise self.problem


class BenchmarkImages:
    """Finds a benchmark's images by name in the folders of ``--images``, or by URL if that is allowed.

    Args:
        folders: searched together with the subfolders that COCO's zip files unpack to.
        allow_url: whether an image that is in no folder may be downloaded.
        needed_by: name of the benchmark, for messages.

    Raises:
        InputError: a folder does not exist, or there are no folders and downloads are not allowed.
    """

    def __init__(self, folders: Sequence[Path], allow_url: bool, *, needed_by: str) -> None:
        if not folders and not allow_url:
            raise InputError(
                f"--bench {needed_by} names its images but does not hold them: no --images was given",
                "--images DIR with the COCO images, or --allow-url to fetch each by its link",
            )
        self._folders = ImageFolders(folders, subfolders=_COCO_FOLDERS)
        self._num_folders = len(self._folders.folders)
        self._allow_url = allow_url

    def find(self, name: str, link: object) -> ImageReference:
        """Find ``name`` by its path, then by its file name; else use the URL ``link``, else return a `MissingImage`."""
        remote = UrlImage(link) if self._allow_url and isinstance(link, str) and is_url(link) else None
        if is_url(name):
            return remote or MissingImage(
                name, f"image {name} is a URL, and --allow-url was not given", "--allow-url fetches it"
            )
        refused = None
        for candidate in dict.fromkeys((name, name.rpartition("/")[2])):
            try:
                path = self._folders.locate(candidate)
            except InvalidRow as error:
                refused = str(error)
                continue
            if path is not None:
                return FileImage(name, path)
        reason = refused or f"image {name} is in none of the {self._num_folders} folders looked at"
        return remote or MissingImage(name, reason, "check --images")


def missing_images(items: Mapping[str, Sequence[Example]]) -> list[str]:
    """Return a sentence about each benchmark that has questions with missing images.

    Raises:
        InputError: the images of all questions are missing.
    """
    missing = {
        name: [item.image for item in members if isinstance(item.image, MissingImage)]
        for name, members in items.items()
    }
    sentences = [
        f"{name}: {len(images):,} of {len(items[name]):,} questions can't be asked: {images[0].problem.message}"
        for name, images in missing.items()
        if images
    ]
    if all(len(images) == len(items[name]) for name, images in missing.items()):
        raise InputError(sentences[0], next(iter(missing.values()))[0].problem.hint)
    return sentences
