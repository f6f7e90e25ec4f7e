"""Pixel values are bit-identical to those of transformers' PIL image processors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fixtures.pictures import picture
from PIL import Image
from transformers import LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from m2pt_cli.data.image_transforms import PixelPreparer, fit_of
from m2pt_cli.errors import SettingsError

SIZES = [(300, 200), (200, 300), (48, 48), (224, 224), (337, 336), (17, 100), (5, 900), (1, 1)]


def theirs(image_processor: Any, image: Image.Image) -> np.ndarray:
    return image_processor(images=image, return_tensors="np")["pixel_values"][0]


def prepared(image: Image.Image, fit: str, image_processor: Any) -> Any:
    return PixelPreparer(image_processor, fit=fit).pixels(image.convert("RGB"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "image_processor",
    [
        CLIPImageProcessorPil(),
        CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}),
        CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, resample=2),
        SiglipImageProcessorPil(size={"height": 64, "width": 64}),
        LlavaImageProcessorPil(do_pad=True),
        CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}, do_normalize=False),
    ],
    ids=["clip", "nano", "smaller-crop", "siglip", "llava-pad", "rescale-only"],
)
def test_base_is_what_the_image_processor_does(image_processor: Any, size: tuple[int, int]) -> None:
    image = picture(*size)
    mine = prepared(image, "base", image_processor)
    assert mine.dtype == np.float32
    assert np.array_equal(mine, theirs(image_processor, image))


@pytest.mark.parametrize("size", SIZES)
def test_crop_and_pad_of_a_clip_processor(size: tuple[int, int]) -> None:
    clip, image = CLIPImageProcessorPil(), picture(*size)
    assert np.array_equal(prepared(image, "crop", clip), theirs(clip, image))
    assert np.array_equal(prepared(image, "pad", clip), theirs(LlavaImageProcessorPil(do_pad=True), image))


def test_crop_and_pad_of_a_siglip_processor_keep_the_aspect() -> None:
    siglip, image = SiglipImageProcessorPil(size={"height": 64, "width": 64}), picture(120, 80)
    cropped = CLIPImageProcessorPil(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, resample=siglip.resample,
        image_mean=siglip.image_mean, image_std=siglip.image_std,
    )  # fmt: skip
    assert np.array_equal(prepared(image, "crop", siglip), theirs(cropped, image))
    grey = Image.new("RGB", (120, 120), (127, 127, 127))
    grey.paste(image, (0, 20))
    assert np.array_equal(prepared(image, "pad", siglip), theirs(siglip, grey))


def test_padding_has_the_mean_colour() -> None:
    clip = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    pixels = prepared(Image.new("RGB", (8, 2), "white"), "pad", clip)
    mean = np.array([122, 116, 104]) / 255
    expected = (mean - np.array(clip.image_mean)) / np.array(clip.image_std)
    assert np.allclose(pixels[:, 0, 0], expected, atol=1e-6) and pixels[0, 3, 4] > 1.9


def test_a_preparer_serves_many_images_of_any_mode() -> None:
    preparer = PixelPreparer(CLIPImageProcessorPil(), fit="crop")
    first = preparer.pixels(picture(30, 40)).copy()
    preparer.pixels(picture(50, 20, seed=1))
    assert np.array_equal(first, preparer.pixels(picture(30, 40)))
    assert prepared(picture(30, 40).convert("L"), "crop", CLIPImageProcessorPil()).shape == (3, 224, 224)


def test_an_unknown_fit_is_named() -> None:
    with pytest.raises(SettingsError, match=r"--image-fit 'crob' is not one of crop, pad, base. Did you mean 'crop'\?"):
        fit_of(CLIPImageProcessorPil(), "crob")


def test_the_whole_processor_agrees() -> None:
    from fixtures.pictures import processor

    own: LlavaProcessor = processor()
    image = picture(90, 70)
    whole = own(text="USER: <image>\nWhat?", images=image, return_tensors="np")["pixel_values"][0]
    assert np.array_equal(prepared(image, "crop", own.image_processor), whole)
