"""The answer engine equals plain ``generate``, for the base and for adapters."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.models import fill_adapter
from fixtures.plain_generate import plain_answer
from fixtures.tiny_base import write_tiny_base
from peft import get_peft_model
from PIL import Image

from m2pt_cli.data.sample import BytesImage, DecodedImage
from m2pt_cli.families.processor import set_visual_tokens
from m2pt_cli.generation.engine import AnswerEngine, Decoding, Question
from m2pt_cli.method import preset
from m2pt_cli.models.load import LoadedBase, load_base

WORDS = "yes no not sure is it a the dog cat red blue one two three left right what which answer with".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base"))


def picture(number: int) -> DecodedImage:
    generator = torch.Generator().manual_seed(number)
    pixels = torch.randint(0, 255, (14, 15 + number % 3, 3), generator=generator, dtype=torch.uint8)
    return DecodedImage(f"picture {number}", Image.fromarray(pixels.numpy()))


def questions(seed: int = 0) -> list[Question]:
    """Ragged questions: several about one image, one about another, some in text alone, one about two images."""
    generator = torch.Generator().manual_seed(seed)
    asked = []
    for group, count in enumerate([3, 1, 6, 2, 1]):
        for number in range(count):
            length = int(torch.randint(2, 12, (1,), generator=generator))
            text = " ".join(WORDS[int(i)] for i in torch.randint(len(WORDS), (length,), generator=generator))
            asked.append(Question(f"{group}-{number}", text, (picture(group),), max_new_tokens=3 + number % 4))
    asked += [Question("text-0", "what is it"), Question("text-1", "what is red"), Question("text-2", "what is red")]
    asked.append(Question("pair", "which dog", (picture(7), picture(8))))
    # Answers about one image must not depend on what stands between its questions.
    return asked[1::2] + asked[::2]


@pytest.fixture(params=["bare", "m2pt", "official", "visual", "textual", "interaction", "lora"])
def loaded(request: pytest.FixtureRequest, folder: Path) -> Iterator[LoadedBase]:
    base = load_base(str(folder), device="cpu")
    if request.param == "bare":
        yield base
        return
    method = "m2pt" if request.param == "official" else request.param
    visual_tokens = "official" if request.param == "official" else "patches"
    options: dict[str, Any] = {} if method == "lora" else {"visual_tokens": visual_tokens}
    config = preset(method, base.model.config, num_visual_prompts=3, num_textual_prompts=4, **options)
    model = get_peft_model(base.model, config)
    fill_adapter(model, scale=0.1 if method == "lora" else 0.5)
    set_visual_tokens(base.processor, base.model, visual_tokens, 3 if visual_tokens == "official" else 0)
    yield dataclasses.replace(base, model=model.eval())


@pytest.mark.parametrize("batch_tokens", [40, 10_000], ids=["small batches", "one batch"])
def test_the_engine_gives_the_tokens_of_plain_generate(loaded: LoadedBase, batch_tokens: int) -> None:
    engine = AnswerEngine(loaded, template="plain", image_fit="crop", decoding=Decoding(8), batch_tokens=batch_tokens)
    asked = questions()
    replies = {reply.question.id: reply for reply in engine.answer(asked)}
    assert len(replies) == len(asked)
    wanted = {question.id: plain_answer(engine, question) for question in asked}
    assert {id: reply.text for id, reply in replies.items()} == wanted
    assert len(set(wanted.values())) > 8, "answers that hardly differ would prove little"


def test_known_questions_are_not_asked_again_and_the_others_do_not_change(folder: Path) -> None:
    engine = AnswerEngine(
        load_base(str(folder), device="cpu"), template="plain", image_fit="crop", decoding=Decoding(6), batch_tokens=40
    )
    asked = questions()
    whole = {reply.question.id: reply.text for reply in engine.answer(asked)}
    known = {question.id for question in asked[::3]}
    rest = {reply.question.id: reply.text for reply in engine.answer(asked, known=lambda q: q.id in known)}
    assert rest == {id: text for id, text in whole.items() if id not in known}


def test_a_broken_image_fails_its_own_questions_alone(folder: Path) -> None:
    engine = AnswerEngine(
        load_base(str(folder), device="cpu"), template="plain", image_fit="crop", decoding=Decoding(4)
    )
    broken = BytesImage("broken.png", b"\x89PNG no")
    asked = [
        Question("a", "what is it", (picture(0),)),
        Question("b", "what is it", (broken,)),
        Question("c", "is it red", (broken,)),
        Question("d", "what <image> <image> is it", (picture(1),)),
    ]
    replies = {reply.question.id: reply for reply in engine.answer(asked)}
    assert replies["a"].text is not None
    for name in "bc":
        assert replies[name].text is None
        assert "broken.png" in str(replies[name].error)
    assert replies["d"].error is not None


def test_out_of_memory_halves_the_batch_and_loses_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    engine = AnswerEngine(
        load_base(str(folder), device="cpu"),
        template="plain",
        image_fit="crop",
        decoding=Decoding(4),
        batch_tokens=10_000,
        report=told.append,
    )
    asked = [Question(str(i), "what is it", (picture(i),)) for i in range(7)]
    whole = {reply.question.id: reply.text for reply in engine.answer(asked)}
    run = engine._run

    def run_small(rows: list[Any], *rest: Any) -> Any:
        if len(rows) > 2:
            raise torch.OutOfMemoryError("too much")
        return run(rows, *rest)

    monkeypatch.setattr(engine, "_run", run_small)
    assert {reply.question.id: reply.text for reply in engine.answer(asked)} == whole
    assert told
    assert all("out of memory" in line for line in told)


def test_out_of_memory_on_one_image_halves_its_questions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    engine = AnswerEngine(
        load_base(str(folder), device="cpu"),
        template="plain",
        image_fit="crop",
        decoding=Decoding(4),
        report=told.append,
    )
    asked = [Question(str(i), " ".join(WORDS[i : i + 4]), (picture(0),)) for i in range(5)]
    whole = {reply.question.id: reply.text for reply in engine.answer(asked)}
    assert len(set(whole.values())) > 1
    run, most = engine._run, 2

    def run_few(rows: list[Any], *rest: Any) -> Any:
        if sum(len(row.members) for row in rows) > most:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return run(rows, *rest)

    monkeypatch.setattr(engine, "_run", run_few)
    assert {reply.question.id: reply.text for reply in engine.answer(asked)} == whole
    assert told[0] == "out of memory: a batch of 5 questions about one image is answered in halves"
    most = 0
    assert [reply.error for reply in engine.answer(asked)] == [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    ] * 5


def test_after_out_of_memory_later_batches_are_smaller_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_base(str(folder), device="cpu")
    engine = AnswerEngine(base, template="plain", image_fit="crop", decoding=Decoding(2))
    asked = [Question(str(i), "what is it", (picture(i),)) for i in range(12)]
    (length,) = {len(engine.encode(question)) for question in asked}
    engine.batch_tokens = 4 * length
    run = engine._run

    def run_small(rows: list[Any], *rest: Any) -> Any:
        if len(rows) > 2:
            raise torch.OutOfMemoryError("too much")
        return run(rows, *rest)

    monkeypatch.setattr(engine, "_run", run_small)
    replies = list(engine.answer(asked))
    assert {reply.question.id for reply in replies} == {question.id for question in asked}
    assert all(reply.error is None for reply in replies)
    assert engine.batch_tokens == 2 * length


def test_images_are_opened_by_several_threads_and_keep_their_order(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m2pt_cli.generation.prefetch.image_threads", lambda: 4)
    engine = AnswerEngine(
        load_base(str(folder), device="cpu"), template="plain", image_fit="crop", decoding=Decoding(3), batch_tokens=60
    )
    asked = [Question(str(i), "what is it", (picture(i),)) for i in range(24)]
    alone = {question.id: plain_answer(engine, question) for question in asked}
    prepare, threads = engine.images.prepare, set[int]()
    together = threading.Barrier(2, timeout=30)

    def slow(images: Any) -> Any:
        threads.add(threading.get_ident())
        number = int(images[0].name.rpartition(" ")[2])
        if number < 2:
            together.wait()  # passes only if two images are opened at the same time
        time.sleep(0.01 * (number % 3 == 0))
        return prepare(images)

    monkeypatch.setattr(engine.images, "prepare", slow)
    replies = list(engine.answer(asked))
    assert [reply.question.id for reply in replies] == [question.id for question in asked]
    assert {reply.question.id: reply.text for reply in replies} == alone
    assert len(threads) > 1 and threading.get_ident() not in threads


def test_sampling_follows_the_seed_and_beams_follow_generate(folder: Path) -> None:
    loaded = load_base(str(folder), device="cpu")
    asked = questions()[:6]
    hot = AnswerEngine(loaded, template="plain", image_fit="crop", decoding=Decoding(6, temperature=2.0))
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append({reply.question.id: reply.text for reply in hot.answer(asked)})
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    beams = AnswerEngine(loaded, template="plain", image_fit="crop", decoding=Decoding(6, num_beams=3))
    (reply,) = beams.answer(asked[:1])
    ids = torch.tensor([beams.encode(asked[0])])
    out = loaded.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=asked[0].max_new_tokens,
        num_beams=3,
        do_sample=False,
        **beams.images.prepare(asked[0].images),
    )
    assert reply.text == loaded.processor.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_streamed_pieces_are_the_answer(loaded: LoadedBase) -> None:
    engine = AnswerEngine(loaded, template="plain", image_fit="crop", decoding=Decoding(8))
    pieces: list[str] = []
    question = questions()[0]
    reply = engine.stream(question, pieces.append)
    assert "".join(pieces) == reply.text == plain_answer(engine, question)
    assert len(pieces) > 1
