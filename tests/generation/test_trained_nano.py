"""The engine against plain ``generate`` on the trained nano, whose answers differ between images.

A mixed-up image, question or position would therefore change an answer. In fp32 the answers are equal. In bf16 rounding
depends on the shape of a batch; the few answers that differ are counted.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from fixtures.models import fill_adapter
from fixtures.plain_generate import plain_answer
from peft import get_peft_model

from m2pt_cli.api import train
from m2pt_cli.demo.dataset import demo_captions, demo_eval_questions
from m2pt_cli.families.processor import set_visual_tokens
from m2pt_cli.generation.engine import AnswerEngine, Decoding, Question
from m2pt_cli.method import preset
from m2pt_cli.models.adapters import attach_adapter, read_adapter
from m2pt_cli.models.load import LoadedBase, load_base
from m2pt_cli.settings import TrainSettings

KINDS: dict[str, dict[str, Any]] = {
    "bare": {},
    "m2pt": {},
    "official": {"visual_tokens": "official", "num_visual_prompts": 3},
    "visual": {},
    "textual": {},
    "interaction": {},
    "lora": {},
}


def nano_with(kind: str) -> LoadedBase:
    """nano with an adapter of a kind, far from its first values but not so far that nano sees nothing any more."""
    base = load_base("nano", device="cpu")
    if kind == "bare":
        return base
    options = KINDS[kind]
    config: Any = preset("m2pt" if kind == "official" else kind, base.model.config, **options)
    model = get_peft_model(base.model, config)
    fill_adapter(model, scale=0.01)
    if kind == "official":
        set_visual_tokens(base.processor, base.model, "official", options["num_visual_prompts"])
    return dataclasses.replace(base, model=model.eval())


def asked_of_scenes() -> list[Question]:
    """Ragged: one to three questions about each of 12 images, some about two images, some about none."""
    images = [(image,) for image, _ in demo_captions(12)]
    texts = ["Describe the image.", "What color is it?", "Is there a red circle here, or is it blue?"]
    asked = [
        Question(f"{i}-{t}", text, image, max_new_tokens=9 + 2 * t)
        for i, image in enumerate(images)
        for t, text in enumerate(texts[: 1 + i % 3])
    ]
    asked += [
        Question("pair-0", "Describe both images.", (*images[0], *images[1])),
        Question("pair-1", "Which one is larger?", (*images[0], *images[1])),
        Question("pair-2", "Describe both images.", (*images[1], *images[0])),
        Question("text-0", "What is a circle?"),
        Question("text-1", "What is red?"),
    ]
    # Answers about one image must not depend on what stands between its questions.
    return asked[1::2] + asked[::2]


def answers(engine: AnswerEngine, asked: list[Question]) -> dict[str, str | None]:
    return {reply.question.id: reply.text for reply in engine.answer(asked)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_are_those_of_plain_generate(kind: str) -> None:
    engine = AnswerEngine(
        nano_with(kind), template="vicuna_v1", image_fit="crop", decoding=Decoding(12), batch_tokens=1500
    )
    asked = asked_of_scenes()
    wanted = {question.id: plain_answer(engine, question) for question in asked}
    assert answers(engine, asked) == wanted
    assert len(set(wanted.values())) >= 20, "answers that hardly differ would prove little"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An M²PT adapter after a few seconds of instruction tuning: nano answers, now and then rightly."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    settings = TrainSettings(
        base="nano", data=("demo",), limit=500, max_steps=30, batch_size=8, accumulation=1, device="cpu",
        gradient_checkpointing=False, output_dir=folder,
    )  # fmt: skip
    return Path(train(settings).output_dir)


def asked_of_the_demo() -> list[Question]:
    """Questions of all task families: one to three about an image, and some about two images."""
    drawn = demo_eval_questions(40)
    asked = []
    for number, (first, second) in enumerate(zip(drawn[::2], drawn[1::2], strict=True)):
        about = [(first.question, first.image), (second.question, first.image), (second.question, second.image)]
        asked += [Question(f"{number}-{i}", text, (image,)) for i, (text, image) in enumerate(about[: 1 + number % 3])]
        if number % 5 == 0:
            asked.append(Question(f"{number}-pair", first.question, (second.image, first.image)))
    return asked[1::2] + asked[::2]


@pytest.mark.parametrize(("dtype", "flips"), [("float32", 0), ("bfloat16", 3)])
def test_a_trained_adapter_answers_as_plain_generate_does(adapter: Path, dtype: str, flips: int) -> None:
    info = read_adapter(str(adapter))
    base = load_base("nano", device="cpu", dtype=dtype)
    loaded = dataclasses.replace(base, model=attach_adapter(base, info))
    assert info.chat_template and info.image_fit
    engine = AnswerEngine(
        loaded, template=info.chat_template, image_fit=info.image_fit, decoding=Decoding(8), batch_tokens=1500
    )
    asked = asked_of_the_demo()
    wanted = {question.id: plain_answer(engine, question) for question in asked}
    got = answers(engine, asked)
    differ = {id: (got[id], text) for id, text in wanted.items() if got[id] != text}
    assert len(asked) > 80 and len(set(wanted.values())) >= 20
    assert got.keys() == wanted.keys() and len(differ) <= flips, f"{len(differ)} of {len(asked)} differ: {differ}"
