"""The blind baseline: how well a model scores when every question is paired with another question's image."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from m2pt_cli.errors import SettingsError
from m2pt_cli.evaluation.task import Example


def shuffle_images(items: Sequence[Example], *, seed: int) -> list[Example]:
    """Return every question with the image of another question.

    Images are permuted along one random cycle: no question keeps its image, and questions that share an image still
    share one.

    Raises:
        SettingsError: all questions are about the same image.
    """
    images = {item.image.name: item.image for item in items if item.image is not None}
    if len(images) < 2:
        raise SettingsError("--shuffle-images needs questions about at least two images", "raise --limit")
    order = list(images)
    random.Random(seed).shuffle(order)
    replacement = dict(zip(order, [*order[1:], order[0]], strict=True))
    return [
        item if item.image is None else dataclasses.replace(item, image=images[replacement[item.image.name]])
        for item in items
    ]
