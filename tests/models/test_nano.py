"""The embedded base: transformers' own classes load it, it describes unseen scenes, and it was not taught the tasks."""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from m2pt_cli.demo.dataset import demo_answer_is_right, demo_captions, demo_eval_questions, demo_train_samples
from m2pt_cli.demo.questions import FAMILIES, FORMATS
from m2pt_cli.demo.render import NUMBERS
from m2pt_cli.models.catalog import NANO_FOLDER

MAKER = Path(__file__).parents[2] / "examples" / "make_nano"


@pytest.fixture(scope="module")
def nano() -> tuple[Any, Any]:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    model = LlavaForConditionalGeneration.from_pretrained(NANO_FOLDER, dtype=torch.float32).eval()
    return model, LlavaProcessor.from_pretrained(NANO_FOLDER, backend="pil")


@pytest.fixture(scope="module")
def maker() -> Any:
    """The modules of the script that makes nano, imported as the script imports them."""
    sys.path.insert(0, str(MAKER))
    try:
        import language
        import words

        yield language, words
    finally:
        sys.path.remove(str(MAKER))
        for name in ("language", "words"):
            sys.modules.pop(name, None)


def _answers(nano: tuple[Any, Any], images: list[Any], questions: list[str], *, longest: int = 32) -> list[str]:
    model, processor = nano
    processor.tokenizer.padding_side = "left"
    texts = [f"USER: <image>\n{question} ASSISTANT:" for question in questions]
    inputs = processor(images=images, text=texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=longest, do_sample=False)
    return processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_small_enough_to_ship() -> None:
    files = {path.name: path.stat().st_size for path in NANO_FOLDER.iterdir()}
    assert sum(files.values()) <= 8_000_000
    assert {"config.json", "model.safetensors", "tokenizer.json", "processor_config.json", "README.md"} <= set(files)


def test_it_is_a_llava_of_transformers_own_classes(nano: tuple[Any, Any]) -> None:
    model, processor = nano
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert model.config.vision_config.model_type == "clip_vision_model"
    assert model.config.text_config.model_type == "llama"
    assert model.config.vision_feature_layer == -2 and model.config.vision_feature_select_strategy == "default"
    assert 2_000_000 <= sum(parameter.numel() for parameter in model.parameters()) <= 4_000_000
    assert type(processor.image_processor).__name__ == "CLIPImageProcessorPil"
    stored = json.loads((NANO_FOLDER / "config.json").read_text(encoding="utf-8"))
    assert stored["dtype"] == "bfloat16"


def test_an_image_of_any_size_becomes_nine_tokens(nano: tuple[Any, Any]) -> None:
    model, processor = nano
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 190, 3), dtype=np.uint8))
    inputs = processor(images=image, text="USER: <image>\nWhat? ASSISTANT:", return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_index).sum() == 9
    assert inputs["pixel_values"].shape == (1, 3, 48, 48)
    assert inputs["input_ids"][0, 0] == processor.tokenizer.bos_token_id


def test_any_text_is_accepted_and_numerals_are_number_words(nano: tuple[Any, Any]) -> None:
    tokenizer = nano[1].tokenizer
    for text in ("", "Ünïcode 你好 \n\t 🙂", "a-b_c(d)[e]{f}", "x" * 2000, "USER: USER: ASSISTANT:"):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id and max(ids) < len(tokenizer)
    for number, word in enumerate(NUMBERS):
        assert tokenizer(f"{number}.")["input_ids"] == tokenizer(f"{word}.")["input_ids"]
    assert tokenizer("Zyzzyva")["input_ids"][1:] == [tokenizer.unk_token_id]
    ids = tokenizer("The red star is large, not small.", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == "the red star is large, not small."


def test_the_words_of_the_demo_tasks_are_all_known(nano: tuple[Any, Any]) -> None:
    tokenizer = nano[1].tokenizer
    for sample in demo_train_samples(600, 0):
        for turn in sample.turns:
            assert tokenizer.unk_token_id not in tokenizer(turn.text)["input_ids"], turn.text
    for question in demo_eval_questions(600):
        assert tokenizer.unk_token_id not in tokenizer(question.question)["input_ids"], question.question


def test_the_chat_template_is_the_plain_one(nano: tuple[Any, Any]) -> None:
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What color is the star?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        {"role": "user", "content": [{"type": "text", "text": "And the circle?"}]},
    ]
    text = nano[1].apply_chat_template(messages, add_generation_prompt=True)
    first = "<s>USER: <image>\nWhat color is the star? ASSISTANT: red</s>"
    assert text == f"{first} USER: And the circle? ASSISTANT:"


def test_it_describes_unseen_scenes_and_does_not_answer_questions(nano: tuple[Any, Any]) -> None:
    captions = demo_captions(120)
    said = _answers(nano, [image.open() for image, _ in captions], ["Describe the image."] * len(captions))
    exact = sum(text == caption for text, (_, caption) in zip(said, captions, strict=True)) / len(captions)
    assert exact >= 0.8, exact
    questions = random.Random(0).sample(demo_eval_questions(), 200)
    images = [question.image.open() for question in questions]
    predictions = _answers(nano, images, [question.question for question in questions], longest=12)
    right = [demo_answer_is_right(q.family, q.answer, p) for q, p in zip(questions, predictions, strict=True)]
    assert sum(right) / len(right) <= 0.35


def _stem(text: str) -> str:
    """A sentence without its slots, its case and its last mark."""
    return re.sub(r"\{\w*\}", "_", text.lower()).strip(" .?:")


def test_no_sentence_of_the_pretraining_is_a_wording_of_the_tasks(maker: tuple[Any, Any]) -> None:
    language, _ = maker
    groups = [language.FACTS, language.CLAIMED_FACTS, language.SENTENCES]
    said = {_stem(text) for group in groups for text in group.values()}
    said |= {
        _stem(text) for group in (language.QUESTIONS, language.CLAIMS) for texts in group.values() for text in texts
    }
    cues = (*language.VERDICTS, *language.PLAIN, *language.NUMBERED, *language.CHOOSING, *language.TELLING)
    said |= {_stem(text) for text in cues}
    for family in FAMILIES.values():
        for wording in family.wordings:
            assert _stem(wording) not in said, (family.name, wording)
    assert not {_stem(text) for text in FORMATS.values()} & said


def test_the_vocabulary_is_that_of_the_script(nano: tuple[Any, Any], maker: tuple[Any, Any]) -> None:
    _, words = maker
    assert nano[1].tokenizer.get_vocab() == words.vocabulary()
    assert len(words.vocabulary()) == nano[0].config.text_config.vocab_size
