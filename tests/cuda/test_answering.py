"""The answer engine on the device equals plain ``generate``; running out of device memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from fixtures.models import fill_adapter
from peft import get_peft_model

from m2pt_cli.demo.dataset import demo_captions
from m2pt_cli.generation import engine as engine_module
from m2pt_cli.generation.engine import AnswerEngine, Decoding, Question
from m2pt_cli.method import preset
from m2pt_cli.models.load import LoadedBase, load_base

from .conftest import on

TEXTS = ["Describe the image.", "What color is it?", "Is there a red circle here, or is it blue?"]


def nano(device: torch.device, method: str, dtype: str) -> LoadedBase:
    """The embedded base, which really sees, bare or with an adapter of random weights."""
    base = load_base("nano", device=str(device), dtype=dtype)
    if method == "bare":
        return base
    model = get_peft_model(base.model.cpu(), preset(method, base.model.config))
    fill_adapter(model, scale=0.01)
    return dataclasses.replace(base, model=model.to(device).eval())


def ask(loaded: LoadedBase) -> tuple[AnswerEngine, list[Question]]:
    engine = AnswerEngine(loaded, template="vicuna_v1", image_fit="crop", decoding=Decoding(12), batch_tokens=1500)
    images = [(image,) for image, _ in demo_captions(10)]
    questions = [
        Question(f"{i}-{t}", text, image)
        for i, image in enumerate(images)
        for t, text in enumerate(TEXTS if i % 3 else TEXTS[:1])
    ]
    return engine, questions


def plain(engine: AnswerEngine, question: Question) -> str:
    loaded = engine.loaded
    ids = torch.tensor([engine.encode(question)], device=loaded.device)
    pixels = on(loaded.device, engine.images.prepare(question.images), loaded.dtype)
    with torch.inference_mode():
        out = loaded.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, **pixels
        )
    return loaded.processor.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize(("dtype", "least"), [("float32", 1.0), ("bfloat16", 0.8)])
@pytest.mark.parametrize("method", ["bare", "m2pt", "lora"])
def test_the_tokens_are_those_of_generate(method: str, dtype: str, least: float, device: torch.device) -> None:
    """All of them in fp32; in bf16 a tie may fall the other way in a few."""
    engine, questions = ask(nano(device, method, dtype))
    replies = {reply.question.id: reply.text for reply in engine.answer(questions)}
    wanted = {question.id: plain(engine, question) for question in questions}
    same = sum(replies[id] == text for id, text in wanted.items())
    assert same >= least * len(questions), f"{same} of {len(questions)} answers are the same"
    assert len(set(wanted.values())) > 5, "answers that hardly differ would prove little"


def test_without_memory_every_question_fails_in_one_line(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, questions = ask(nano(device, "bare", "auto"))
    told: list[str] = []
    engine.report = told.append
    with no_memory(device, monkeypatch):
        replies = list(engine.answer(questions[:4]))
    assert len(replies) == 4 and told
    for reply in replies:
        assert reply.text is None and reply.error is not None
        assert "out of memory" in reply.error and "\n" not in reply.error
    assert all(reply.text for reply in engine.answer(questions[:4])), "memory that comes back is used"


@contextmanager
def no_memory(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On CUDA nothing more can be allocated; elsewhere the model's call fails as CUDA's allocator does."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        # What lies free in blocks that are held already is taken, too.
        filler = fill_held_memory(device)
        torch.cuda.set_per_process_memory_fraction(1e-9, device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
            del filler
        return

    def fail(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nand more lines")

    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "answer_groups", fail)
        yield


def fill_held_memory(device: torch.device) -> list[torch.Tensor]:
    """Tensors that take every free byte of the blocks which the allocator has reserved."""
    torch.cuda.set_per_process_memory_fraction(1e-9, device)
    taken = []
    for size in (2**26, 2**24, 2**22, 2**21, 2**20, 2**18, 2**16, 2**14, 2**12, 2**10, 512):
        try:
            while True:
                taken.append(torch.empty(size, dtype=torch.uint8, device=device))
        except torch.OutOfMemoryError:
            continue
    return taken
