"""Batches: padding on both sides, images in order, LLaVA-NeXT's tiles, broken images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.pictures import next_processor, picture, picture_file, processor

from m2pt_cli.data.chat import get_template
from m2pt_cli.data.collate import Collator, ImagePreparer, join_images, pil_image_processor
from m2pt_cli.data.sample import BytesImage, DecodedImage, Sample, Turn
from m2pt_cli.data.tokenize import EncodedSample, encode_samples
from m2pt_cli.errors import InputError, SettingsError

QUESTION = "How many dogs are there?"


def held(width: int, height: int, seed: int = 0) -> DecodedImage:
    return DecodedImage(f"{width}x{height}-{seed}", picture(width, height, seed))


def conversation(num_images: int, answer: str = "Yes.") -> tuple[Turn, ...]:
    return (Turn("user", "<image>\n" * num_images + QUESTION), Turn("assistant", answer))


def encoded(own: Any, samples: list[Sample], images: ImagePreparer) -> list[EncodedSample]:
    return list(
        encode_samples(
            samples, get_template("plain"), own.tokenizer, image_token_id=own.image_token_id,
            image_ids=images.image_ids, max_length=500,
        )
    )  # fmt: skip


def test_a_batch_equals_the_processors() -> None:
    own = processor()
    images = ImagePreparer(own, fit="crop")
    samples = [
        Sample("one", (held(60, 40),), conversation(1)),
        Sample("none", (), conversation(0, "There are 12 dogs.")),
        Sample("two", (held(40, 60, 1), held(48, 48, 2)), conversation(2)),
    ]
    batch = Collator(images, pad_token_id=3)(encoded(own, samples, images))
    text = [get_template("plain").render(sample.turns, eos="</s>").text for sample in samples]
    pictures = [image.open() for sample in samples for image in sample.images]
    theirs = own(text=text, images=pictures, padding=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"], theirs["input_ids"])
    assert torch.equal(batch["attention_mask"], theirs["attention_mask"])
    assert torch.equal(batch["pixel_values"], theirs["pixel_values"])
    assert set(batch) == {"input_ids", "attention_mask", "labels", "pixel_values"}
    supervised = batch["labels"] != -100
    assert torch.equal(batch["labels"][supervised], batch["input_ids"][supervised])
    assert supervised.any(1).all() and not (supervised & (batch["attention_mask"] == 0)).any()


def test_a_batch_of_text_alone_has_no_pixels() -> None:
    own = processor()
    images = ImagePreparer(own, fit="crop")
    batch = Collator(images, pad_token_id=3)(encoded(own, [Sample("a", (), conversation(0))], images))
    assert "pixel_values" not in batch


def test_official_visual_tokens_are_counted() -> None:
    own = processor()
    images = ImagePreparer(own, fit="crop")
    assert [len(ids) for ids in images.image_ids([held(60, 40)])] == [9]
    own.num_additional_image_tokens = 1 + 20
    assert [len(ids) for ids in images.image_ids([held(60, 40), held(9, 9)])] == [29, 29]
    assert images.image_ids([]) == [] and images.prepare([]) == {}


def test_a_wider_crop_has_more_tokens() -> None:
    own = processor(image=64)
    assert [len(ids) for ids in ImagePreparer(own, fit="pad").image_ids([held(60, 40)])] == [16]


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (64, 64), (100, 9), (33, 70)])
def test_tiles_are_counted_and_prepared_as_llava_next_does(size: tuple[int, int]) -> None:
    own = next_processor()
    images = ImagePreparer(own, fit="base")
    theirs = own(text="<image>", images=picture(*size), return_tensors="pt")
    assert [len(ids) for ids in images.image_ids([held(*size)])] == [
        int((theirs["input_ids"] == own.image_token_id).sum())
    ]
    prepared = images.prepare([held(*size)])
    assert torch.equal(prepared["pixel_values"], theirs["pixel_values"])
    assert torch.equal(prepared["image_sizes"], theirs["image_sizes"])


def test_rows_of_different_tiles_are_joined() -> None:
    own = next_processor()
    images = ImagePreparer(own, fit="base")
    pictures = [held(60, 20), held(64, 64, 1), held(20, 60, 2)]
    theirs = own.image_processor(images=[image.open() for image in pictures], return_tensors="pt")
    joined = join_images([images.prepare([pictures[0]]), {}, images.prepare(pictures[1:])])
    assert torch.equal(joined["pixel_values"], theirs["pixel_values"])
    assert torch.equal(joined["image_sizes"], theirs["image_sizes"])
    assert join_images([{}, {}]) == {}


def test_tiles_go_with_no_other_fit() -> None:
    with pytest.raises(SettingsError, match="--image-fit crop does not go with this base") as caught:
        ImagePreparer(next_processor(), fit="crop")
    assert caught.value.hint == "use --image-fit base"


def test_a_broken_image_met_in_a_batch_is_named(tmp_path: Path) -> None:
    own = processor()
    images = ImagePreparer(own, fit="crop")
    good = picture_file(tmp_path / "good.jpg")
    (tmp_path / "bad.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:900])
    bad = BytesImage("photos/bad.jpg", (tmp_path / "bad.jpg").read_bytes())
    samples = encoded(own, [Sample(str(i), (image,), conversation(1)) for i, image in enumerate((good, bad))], images)
    with pytest.raises(InputError, match=r"photos/bad\.jpg can't be read"):
        Collator(images, pad_token_id=3)(samples)


def test_the_pil_variant_of_any_image_processor() -> None:
    own = processor().image_processor
    assert pil_image_processor(own) is own

    class CLIPImageProcessor:  # as transformers' own, which needs torchvision
        backend = "torchvision"

        def to_dict(self) -> dict[str, Any]:
            return own.to_dict()

    pil = pil_image_processor(CLIPImageProcessor())
    assert pil.backend == "pil" and pil.crop_size["height"] == 48

    class Strange(CLIPImageProcessor):
        pass

    with pytest.raises(SettingsError, match="Strange has no PIL variant"):
        pil_image_processor(Strange())


def test_a_small_image_is_drawn_once_and_a_large_one_whenever_it_is_used() -> None:
    class Counting:
        opened = 0

        def __init__(self, name: str) -> None:
            self.name = name

        def open(self) -> Any:
            Counting.opened += 1
            return picture(60, 40, seed=len(self.name))

    for side, times in ((48, 2), (80, 4)):
        Counting.opened = 0
        images = ImagePreparer(processor(image=side), fit="crop")
        first, other = (images.prepare([Counting("a"), Counting("bb")])["pixel_values"] for _ in range(2))
        assert Counting.opened == times and torch.equal(first, other) and not torch.equal(first[0], first[1])
