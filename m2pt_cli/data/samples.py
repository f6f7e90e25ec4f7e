"""A training sample: images and a conversation about them, wherever they came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_MARK = "<image>"


class ImageReference(Protocol):
    """An image that is opened when it is needed."""

    @property
    def name(self) -> str:
        """What a report shows: a path, or the name of a drawn scene."""

    def open(self) -> Image:
        """The image in RGB. Raises InputError where it can't be read."""


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation; a user's text holds ``<image>`` where an image stands."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True)
class Sample:
    """Images and a conversation; the marks ``<image>`` in the turns count as many as ``images``."""

    id: str
    images: tuple[ImageReference, ...]
    turns: tuple[Turn, ...]
    task: str | None = None
