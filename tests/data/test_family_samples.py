"""Samples of every family beyond LLaVA: what is trained is what the base's own processor makes of the conversation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fixtures.families import FAMILIES, family_processor, needs_packages, tiny_family
from PIL import Image

from m2pt_cli.data.chat import get_template
from m2pt_cli.data.collate import Collator, ProcessorImages, image_preparer, join_images
from m2pt_cli.data.sample import DecodedImage, Sample, Turn
from m2pt_cli.data.tokenize import encode_prompt, encode_samples
from m2pt_cli.errors import InputError, SettingsError

each_family = pytest.mark.parametrize("name", [pytest.param(name, marks=needs_packages(name)) for name in FAMILIES])


def held(width: int, height: int, seed: int = 0) -> DecodedImage:
    picture = Image.effect_noise((width, height), 60 + seed).convert("RGB")
    return DecodedImage(f"{width}x{height}-{seed}", picture)


SAMPLES = [
    Sample("one", (held(90, 60),), (Turn("user", "<image>\nWhat is it?"), Turn("assistant", "A red dog."))),
    Sample("text", (), (Turn("user", "Say yes."), Turn("assistant", "yes"))),
    Sample(
        "two",
        (held(40, 40, 1), held(60, 90, 2)),
        (
            Turn("user", "<image><image>Which one is larger?"),
            Turn("assistant", "The second."),
            Turn("user", "Why?"),
            Turn("assistant", "It is taller, naïvely."),
        ),
    ),
]


def messages(sample: Sample) -> list[dict[str, Any]]:
    written: list[dict[str, Any]] = []
    for turn in sample.turns:
        marks = turn.text.count("<image>")
        text = turn.text.replace("<image>", "").strip()
        content = [{"type": "image"}] * marks + [{"type": "text", "text": text}]
        written.append({"role": turn.role, "content": content})
    return written


def theirs(own: Any, samples: list[Sample]) -> dict[str, torch.Tensor]:
    texts = [own.apply_chat_template(messages(sample), tokenize=False).rstrip() for sample in samples]
    images = [[image.open() for image in sample.images] for sample in samples if sample.images]
    inputs = own(text=texts, images=images or None, padding=True, padding_side="right", return_tensors="pt")
    return dict(inputs)


def batch(own: Any, samples: list[Sample]) -> dict[str, torch.Tensor]:
    images = image_preparer(own, fit="base")
    encoded = encode_samples(
        samples,
        get_template("base", own),
        own.tokenizer,
        image_token_id=own.image_token_id,
        image_ids=images.image_ids,
        max_length=1000,
    )
    return Collator(images, pad_token_id=own.tokenizer.pad_token_id)(list(encoded))


@each_family
@pytest.mark.parametrize("index", range(3))
def test_ids_and_pixels_are_the_processors(name: str, index: int) -> None:
    own = family_processor(name)
    mine, wanted = batch(own, SAMPLES[index : index + 1]), theirs(own, SAMPLES[index : index + 1])
    assert mine["input_ids"].tolist() == wanted["input_ids"].tolist()
    for key in mine.keys() - {"labels", "attention_mask", "input_ids"}:
        assert torch.equal(mine[key], wanted[key]), key
    assert mine.keys() - {"labels"} == wanted.keys() - {"token_type_ids", "mm_token_type_ids"}


@each_family
def test_answers_and_their_ends_are_supervised_and_nothing_else(name: str) -> None:
    own = family_processor(name)
    labels = batch(own, SAMPLES)["labels"]
    end = own.tokenizer.eos_token
    said = [own.tokenizer.decode(row[row != -100]) for row in labels]
    assert [text.replace(end, "|").replace("\n", "").strip() for text in said] in (
        ["A red dog.|", "yes|", "The second.|It is taller, naïvely.|"],
        ["A red dog.|", "yes|", "The second.| It is taller, naïvely.|"],
    )


@each_family
def test_a_batch_of_different_rows_runs_and_each_row_is_as_alone(name: str) -> None:
    own, model = family_processor(name), tiny_family(name)
    together = batch(own, SAMPLES)
    labels = together.pop("labels")
    with torch.no_grad():
        logits = model(**together, use_cache=False).logits
        for row, sample in enumerate(SAMPLES):
            alone = batch(own, [sample])
            alone.pop("labels")
            length = alone["input_ids"].shape[1]
            expected = model(**alone, use_cache=False).logits[0]
            torch.testing.assert_close(logits[row, :length], expected, atol=1e-4, rtol=1e-4)
    assert labels.shape == together["input_ids"].shape


@each_family
def test_the_ids_of_an_image_follow_its_size(name: str) -> None:
    own = family_processor(name)
    preparer = image_preparer(own, fit="base")
    assert isinstance(preparer, ProcessorImages)
    for size in ((10, 10), (32, 32), (33, 32), (32, 33), (64, 20), (20, 64), (200, 50), (50, 200), (99, 98), (70, 65)):
        image = held(*size)
        mark = own.tokenizer.eos_token
        wanted = own(text=[f"{mark}{own.image_token}{mark}"], images=[[image.open()]])["input_ids"][0]
        (found,) = preparer.image_ids([image])
        assert list(found) == list(wanted[1:-1]), size


@each_family
def test_a_prompt_ends_where_the_answer_begins(name: str) -> None:
    own = family_processor(name)
    preparer = image_preparer(own, fit="base")
    image = held(90, 60)
    ids = encode_prompt(
        "What is it?",
        1,
        get_template("base", own),
        own.tokenizer,
        image_token_id=own.image_token_id,
        image_ids=preparer.image_ids([image]),
    )
    text = own.apply_chat_template(messages(SAMPLES[0])[:1], tokenize=False, add_generation_prompt=True)
    assert ids == list(own(text=[text], images=[[image.open()]])["input_ids"][0])


@each_family
def test_what_the_base_decides_can_not_be_said_otherwise(name: str) -> None:
    with pytest.raises(SettingsError, match="--image-fit crop does not go with this base"):
        image_preparer(family_processor(name), fit="crop")


@each_family
def test_an_image_cut_off_is_a_fault(name: str) -> None:
    own = family_processor(name)
    images = image_preparer(own, fit="base")
    with pytest.raises(InputError, match="its image reaches beyond 20 tokens"):
        encode_samples(
            SAMPLES[:1],
            get_template("base", own),
            own.tokenizer,
            image_token_id=own.image_token_id,
            image_ids=images.image_ids,
            max_length=20,
        )


def test_joining_fills_up_with_zeros() -> None:
    joined = join_images([{"a": torch.ones(1, 2, 3)}, {}, {"a": torch.ones(2, 1, 4)}])
    assert joined["a"].shape == (3, 2, 4) and joined["a"].sum() == 6 + 8
    assert join_images([{}, {}]) == {}
