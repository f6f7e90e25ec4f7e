"""Images that a data set only names: files of ``--images`` folders, or URLs where the user allows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import TYPE_CHECKING

from m2pt_cli.data.fetching import is_url
from m2pt_cli.data.samples import FileImage, ImageReference, UrlImage
from m2pt_cli.errors import InputError
from m2pt_cli.evaluation.rows import Item

if TYPE_CHECKING:
    from PIL.Image import Image

# COCO as its zip files unpack.
_SUBFOLDERS = ("", "images", "val2014", "train2014", "val2017", "train2017", "trainval2017")


@dataclass(frozen=True)
class MissingImage:
    """An image that was found nowhere: its question fails, the others go on."""

    name: str
    num_folders: int

    @property
    def problem(self) -> InputError:
        """Why it can't be opened."""
        if is_url(self.name):
            return InputError(f"image {self.name} is a URL, and --allow-url was not given", "--allow-url fetches it")
        return InputError(f"image {self.name} is in none of the {self.num_folders} folders looked at", "check --images")

    def open(self) -> Image:
        """Raises InputError."""
        raise self.problem


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

    def find(self, name: str, link: object) -> ImageReference:
        """The image called ``name``; one that is nowhere fails when it is opened, and its question with it."""
        path = Path(name)
        is_inside = not path.is_absolute() and ".." not in path.parts
        for folder in self._folders:
            for candidate in (folder / path, folder / path.name) if is_inside else ():
                if isfile(candidate):  # False for a name that is too long, where Path.is_file raises
                    return FileImage(name, candidate)
        if self._allow_url and isinstance(link, str) and is_url(link):
            return UrlImage(link)
        return MissingImage(name, len(self._folders))


def missing_images(items: Mapping[str, Sequence[Item]]) -> list[str]:
    """A sentence about each benchmark that asks about images that are nowhere.

    Raises:
        InputError: no question of any benchmark can be asked for that reason.
    """
    missing = {
        name: [item.image for item in members if isinstance(item.image, MissingImage)]
        for name, members in items.items()
    }
    said = [
        f"{name}: {len(images):,} of {len(items[name]):,} questions can't be asked: {images[0].problem.message}"
        for name, images in missing.items()
        if images
    ]
    if all(len(images) == len(items[name]) for name, images in missing.items()):
        raise InputError(said[0], next(iter(missing.values()))[0].problem.hint)
    return said
