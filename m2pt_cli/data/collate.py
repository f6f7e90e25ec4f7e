"""Collate samples into a batch: open and preprocess images, pad token ids.

Images are opened only here: in the worker processes of a data loader, or in a thread of the engine.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from m2pt_cli.data.image_transforms import Fit, PixelPreparer
from m2pt_cli.data.sample import ImageReference, image_size
from m2pt_cli.data.tokenize import UNSUPERVISED, EncodedSample, ImageIds
from m2pt_cli.errors import InputError, SettingsError
from m2pt_cli.families.family import LLAVA
from m2pt_cli.families.processor import pil_image_processor

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
        self._ids: dict[int, ImageIds] = {}

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

    def image_ids(self, images: Sequence[ImageReference]) -> list[ImageIds]:
        """The ids that stand for each image in the prompt.

        Raises:
            InputError: the size of an image is needed and can't be read.
        """
        if not images:
            return []
        if self.is_tiled:
            sizes = [(height, width) for width, height in map(image_size, images)]
            counts = self.processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]
            return [self._repeated(int(count)) for count in counts]
        assert self._pixels is not None
        height, width = self._pixels.fit.size
        patch = self.processor.patch_size
        count = (height // patch) * (width // patch) + self.processor.num_additional_image_tokens
        return [self._repeated(count - (self.processor.vision_feature_select_strategy == "default"))] * len(images)

    def _repeated(self, count: int) -> ImageIds:
        if count not in self._ids:
            self._ids[count] = np.full(count, self.processor.image_token_id, np.int32)
        return self._ids[count]


class ProcessorImages:
    """Opens images for a base beyond LLaVA, whose own processor decides about tiles, pixels and tokens.

    Args:
        processor: the base's processor.
        fit: ``base`` alone.

    Raises:
        SettingsError: another fit.
    """

    is_tiled = True

    def __init__(self, processor: Any, *, fit: str) -> None:
        if fit != "base":
            raise SettingsError(
                f"--image-fit {fit} does not go with this base, which fits images itself", "use --image-fit base"
            )
        self.processor = processor
        self._ids: dict[Any, list[ImageIds]] = {}

    def prepare(self, images: Sequence[ImageReference]) -> dict[str, Tensor]:
        """What the base's processor makes of ``images``; an empty dict if there are none.

        Raises:
            InputError: an image can't be read; the message names it.
        """
        return self._processed([image.open() for image in images])[1] if images else {}

    def picture(self, image: ImageReference, *, side: int) -> NDArray[np.uint8]:
        """The whole image, resized to a square of ``side`` pixels."""
        return np.asarray(image.open().resize((side, side)))

    def image_ids(self, images: Sequence[ImageReference]) -> list[ImageIds]:
        """The ids that stand for each image in the prompt: what the processor writes for a blank image of its size.

        Raises:
            InputError: the size of an image can't be read.
        """
        sizes = [image_size(image) for image in images]
        if len(sizes) == 1:
            return self._ids_of(tuple(sizes), self._shape(sizes[0]))
        # Some processors cut an image into tiles only where it is alone.
        return self._ids_of(tuple(sizes), tuple(sizes)) if sizes else []

    def _ids_of(self, sizes: tuple[tuple[int, int], ...], key: Any) -> list[ImageIds]:
        if key not in self._ids:
            self._ids[key] = self._processed([Image.new("RGB", size) for size in sizes])[0]
        return self._ids[key]

    def _shape(self, size: tuple[int, int]) -> Any:
        """What the ids of a single image depend on; cheap, where the processor counts without an image."""
        count = getattr(self.processor, "_get_num_multimodal_tokens", None)
        if count is None:
            return size
        width, height = size
        found = count(image_sizes=[(height, width)])
        return found["num_image_tokens"][0], found["num_image_patches"][0], width >= height

    def _processed(self, images: Sequence[Image.Image]) -> tuple[list[ImageIds], dict[str, Tensor]]:
        """The ids that stand for each image, and the model's inputs for all of them together."""
        # Between two ends of sequence, which no image holds, stands one image.
        mark = self.processor.tokenizer.eos_token
        text = mark + "".join(f"{self.processor.image_token}{mark}" for _ in images)
        try:
            inputs = dict(self.processor(text=[text], images=[list(images)], return_tensors="pt"))
        except ValueError as error:
            raise InputError(f"the processor of this base refuses an image: {str(error)[:200]}") from None
        ids = inputs.pop("input_ids")[0].numpy().astype(np.int32)
        ends = np.flatnonzero(ids == self.processor.tokenizer.eos_token_id)[: len(images) + 1]
        between = [ids[start + 1 : end] for start, end in itertools.pairwise(ends)]
        for name in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
            inputs.pop(name, None)
        return between, inputs


def image_preparer(processor: Any, *, fit: str) -> ImagePreparer | ProcessorImages:
    """What opens and preprocesses images for the base that ``processor`` belongs to.

    Raises:
        SettingsError: the base does not support this fit.
    """
    is_llava = type(processor).__name__ in LLAVA.processors.values()
    return ImagePreparer(processor, fit=fit) if is_llava else ProcessorImages(processor, fit=fit)


class Collator:
    """Collates encoded samples into a batch, padded on the right; a broken image raises InputError with its name.

    Args:
        images: opens and preprocesses images.
        pad_token_id: pads the shorter sequences.
    """

    def __init__(self, images: ImagePreparer | ProcessorImages, *, pad_token_id: int) -> None:
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
    """Concatenate the image inputs of several samples; where tiles are fewer or smaller, zeros are added."""
    with_images = [inputs for inputs in prepared if inputs]
    names = with_images[0] if with_images else ()
    return {name: _concatenated([inputs[name] for inputs in with_images]) for name in names}


def _concatenated(tensors: Sequence[Tensor]) -> Tensor:
    largest = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        missing = [most - size for most, size in zip(largest, tensor.shape[1:], strict=True)]
        sides = [side for amount in reversed(missing) for side in (0, amount)]
        padded.append(torch.nn.functional.pad(tensor, sides) if any(missing) else tensor)
    return torch.cat(padded)
