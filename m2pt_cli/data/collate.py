"""Collate samples into a batch: open and preprocess images, pad token ids.

Images are opened only here: in the worker processes of a data loader, or in a thread of the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m2pt_cli.data.image_transforms import Fit, PixelPreparer
from m2pt_cli.data.sample import ImageReference, image_size
from m2pt_cli.data.tokenize import UNSUPERVISED, EncodedSample
from m2pt_cli.errors import SettingsError

# Resized images of up to 64 x 64 pixels are cached: at most 8192 of them, 100 MB.
_MAX_CACHED_SIZE, _MAX_CACHED_IMAGES = 64 * 64 * 3, 8192


class ImagePreparer:
    """Opens images and preprocesses them for a base.

    Args:
        processor: the base's processor. The number of tokens per image is read from it at each call, because
            attaching an adapter may change it later (``visual_tokens``).
        fit: ``crop``, ``pad`` or ``base``; a base that cuts images into tiles (LLaVA-NeXT) supports only ``base``.

    Raises:
        SettingsError: the base does not support this fit.
    """

    def __init__(self, processor: Any, *, fit: str) -> None:
        self.processor = processor
        self.image_processor = pil_image_processor(processor.image_processor)
        self.is_tiled = hasattr(self.image_processor, "image_grid_pinpoints")
        if self.is_tiled and fit != "base":
            raise SettingsError(
                f"--image-fit {fit} does not go with this base, which cuts images into tiles", "use --image-fit base"
            )
        self._pixels = None if self.is_tiled else PixelPreparer(self.image_processor, fit=fit)
        self._cache: dict[str, NDArray[np.uint8]] = {}

    def prepare(self, images: Sequence[ImageReference]) -> dict[str, Tensor]:
        """Preprocess ``images`` to model inputs; an empty dict if there are none.

        Returns:
            ``{"pixel_values": (n, 3, height, width)}``, or for a base with tiles
            ``{"pixel_values": (n, tiles, 3, height, width), "image_sizes": (n, 2)}``.

        Raises:
            InputError: an image can't be read; the message names it.
        """
        if not images:
            return {}
        if self._pixels is not None:
            values = [self._pixels.values(self._fitted(image, self._pixels.fit)) for image in images]
            return {"pixel_values": torch.from_numpy(np.stack(values))}
        inputs = self.image_processor(images=[image.open() for image in images], return_tensors="pt")
        return {"pixel_values": inputs["pixel_values"], "image_sizes": inputs["image_sizes"]}

    def picture(self, image: ImageReference, *, side: int) -> NDArray[np.uint8]:
        """The image cropped or padded as for the vision tower, ``(height, width, 3)``, about ``side`` pixels high.

        For a base that cuts images into tiles: the whole image, resized to a square.
        """
        opened = image.open()
        if self._pixels is None:
            return np.asarray(opened.resize((side, side)))
        fit = self._pixels.fit
        times = max(1, side // fit.size[0])
        size = (fit.size[0] * times, fit.size[1] * times)
        return replace(fit, size=size, shortest=None if fit.shortest is None else fit.shortest * times).apply(opened)

    def _fitted(self, image: ImageReference, fit: Fit) -> NDArray[np.uint8]:
        """The image after `Fit.apply`, ``(height, width, 3)``; small images are cached.

        Drawing a demo scene again costs several times as much as a look-up.
        """
        cached = self._cache.get(image.name)
        if cached is not None:
            return cached
        fitted = fit.apply(image.open())
        if fitted.size <= _MAX_CACHED_SIZE and len(self._cache) < _MAX_CACHED_IMAGES:
            self._cache[image.name] = fitted
        return fitted

    def token_counts(self, images: Sequence[ImageReference]) -> list[int]:
        """The number of tokens of each image in the prompt.

        Raises:
            InputError: the size of an image is needed and can't be read.
        """
        if not images:
            return []
        if self.is_tiled:
            sizes = [(height, width) for width, height in map(image_size, images)]
            counts = self.processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]
            return [int(count) for count in counts]
        assert self._pixels is not None
        height, width = self._pixels.fit.size
        patch = self.processor.patch_size
        count = (height // patch) * (width // patch) + self.processor.num_additional_image_tokens
        return [count - (self.processor.vision_feature_select_strategy == "default")] * len(images)


class Collator:
    """Collates encoded samples into a batch, padded on the right; a broken image raises InputError with its name.

    Args:
        images: opens and preprocesses images.
        pad_token_id: pads the shorter sequences.
    """

    def __init__(self, images: ImagePreparer, *, pad_token_id: int) -> None:
        self.images = images
        self.pad_token_id = pad_token_id

    def __call__(self, samples: Sequence[EncodedSample]) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask``, ``labels``: ``(batch, length)``, and the images in the samples' order.

        If no sample of the batch has an image, there is no ``pixel_values``.
        """
        length = max(len(sample.encoded.input_ids) for sample in samples)
        ids = torch.full((len(samples), length), self.pad_token_id, dtype=torch.long)
        labels = torch.full_like(ids, UNSUPERVISED)
        mask = torch.zeros_like(ids)
        for row, sample in enumerate(samples):
            count = len(sample.encoded.input_ids)
            ids[row, :count] = torch.tensor(sample.encoded.input_ids)
            labels[row, :count] = torch.tensor(sample.encoded.labels)
            mask[row, :count] = 1
        images = join_images([self.images.prepare(sample.sample.images) for sample in samples])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, **images}


def join_images(prepared: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate the image inputs of several samples; inputs with fewer tiles are padded with zeros."""
    with_images = [inputs for inputs in prepared if inputs]
    if not with_images:
        return {}
    pixels = [inputs["pixel_values"] for inputs in with_images]
    joined: dict[str, Tensor] = {}
    if pixels[0].ndim == 5:
        most = max(part.shape[1] for part in pixels)
        pixels = [torch.nn.functional.pad(part, (0, 0) * 3 + (0, most - part.shape[1])) for part in pixels]
        joined["image_sizes"] = torch.cat([inputs["image_sizes"] for inputs in with_images])
    return {"pixel_values": torch.cat(pixels), **joined}


def pil_image_processor(image_processor: Any) -> Any:
    """The PIL variant of an image processor: its output does not depend on whether torchvision is installed.

    Raises:
        SettingsError: transformers has no such variant.
    """
    if image_processor.backend == "pil":
        return image_processor
    import transformers

    name = f"{type(image_processor).__name__}Pil"
    if not hasattr(transformers, name):
        raise SettingsError(f"{type(image_processor).__name__} has no PIL variant: this base is not supported")
    return getattr(transformers, name)(**image_processor.to_dict())
