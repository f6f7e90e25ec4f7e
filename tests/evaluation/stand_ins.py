"""Small stand-ins for the tests of evaluation: an image drawn in memory, and items about it."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from m2pt_cli.evaluation.rows import Item


@dataclass(frozen=True)
class Drawn:
    """An image of one colour, known by a name."""

    name: str
    color: tuple[int, int, int] = (200, 30, 30)

    def open(self) -> Image.Image:
        return Image.new("RGB", (48, 48), self.color)


def item(number: int, *, image: str | None = None, answer: str = "yes", category: str | None = "a") -> Item:
    """Question ``number``, about an image of its own unless one is named."""
    name = image or f"image-{number}.png"
    return Item(f"q{number}#0", f"q{number}", category, Drawn(name), f"Is it {number}?", answer)
