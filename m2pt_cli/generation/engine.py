"""Answer questions in batches: the same tokens as ``generate`` with one question at a time, several times faster.

Greedy answers share the prefix of all questions about an image (see `prefix_sharing`); sampling and beam search use
transformers' ``generate``. A question that fails becomes a reply with an error; the others are still answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.generation.streamers import BaseStreamer

from m2pt_cli.data.chat import ChatTemplate, get_template
from m2pt_cli.data.collate import image_preparer, join_images
from m2pt_cli.data.sample import ImageReference
from m2pt_cli.data.tokenize import encode_prompt
from m2pt_cli.errors import InputError, M2PTError, is_out_of_memory
from m2pt_cli.generation.prefetch import prefetched
from m2pt_cli.generation.prefix_sharing import PrefixGroup, answer_groups, padded_tokens, plan_batches, plan_groups
from m2pt_cli.generation.stream import TextStreamer

if TYPE_CHECKING:
    from m2pt_cli.models.load import LoadedBase


@dataclass(frozen=True)
class Question:
    """A question about images (none for a text-only question).

    ``max_new_tokens`` overrides the engine's own limit.
    """

    id: str
    text: str
    images: tuple[ImageReference, ...] = ()
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class Reply:
    """The answer to a question, or an error; ``is_faulty`` if the question or its image caused the error."""

    question: Question
    text: str | None
    error: str | None = None
    is_faulty: bool = False


@dataclass(frozen=True)
class Decoding:
    """The decoding settings; temperature 0 with one beam is greedy."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    num_beams: int = 1
    seed: int = 0

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0 and self.num_beams == 1


class AnswerEngine:
    """Answers questions with one model: the base, or with its active adapter.

    Args:
        loaded: base, processor and device; ``loaded.model`` may be a PeftModel.
        template: name of the chat template.
        image_fit: ``crop``, ``pad`` or ``base``.
        decoding: greedy, sampling or beams, and the longest answer.
        batch_tokens: padded tokens of a batch; by default computed from the device's free memory.
        report: called with a line when a batch did not fit and is halved.
    """

    def __init__(
        self,
        loaded: LoadedBase,
        *,
        template: str,
        image_fit: str,
        decoding: Decoding | None = None,
        batch_tokens: int | None = None,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self.loaded = loaded
        self.decoding = decoding or Decoding()
        self.template: ChatTemplate = get_template(template, loaded.processor)
        self.images = image_preparer(loaded.processor, fit=image_fit)
        self.batch_tokens = batch_tokens or default_batch_tokens(loaded)
        self.report = report or (lambda _: None)
        self.eos_ids = _eos_ids(loaded)
        self.pad_id = _pad_id(loaded, self.eos_ids)

    def answer(
        self, questions: Iterable[Question], *, known: Callable[[Question], bool] | None = None
    ) -> Iterator[Reply]:
        """Yield replies in the order of production: questions about one image are answered together.

        Args:
            questions: all questions; batches are planned from the whole list.
            known: questions that are already answered. A batch that contains only known questions is skipped; the
                others run as planned, so that a resumed run computes the same as an uninterrupted one.
        """
        asked = list(questions)
        known_ids = {question.id for question in asked if known is not None and known(question)}
        prompts, able = [], []
        for question in asked:
            try:
                prompts.append(self.encode(question))
                able.append(question)
            except M2PTError as error:
                if question.id not in known_ids:
                    yield Reply(question, None, error.message, is_faulty=isinstance(error, InputError))
        keys = [tuple(image.name for image in question.images) for question in able]
        rows = plan_groups(prompts, keys, image_token_id=self.loaded.model.config.image_token_id)
        batches = [
            batch
            for batch in plan_batches(rows, batch_tokens=self.batch_tokens)
            if any(able[member].id not in known_ids for row in batch for member in row.members)
        ]
        with closing(prefetched(batches, lambda row: self._open(row, able))) as prepared:
            for batch, images in prepared:
                for reply in self._answer_batch(batch, images, able):
                    if reply.question.id not in known_ids:
                        yield reply

    def encode(self, question: Question) -> list[int]:
        """Return the token ids of a question's whole prompt, up to the start of the answer."""
        return encode_prompt(
            question.text,
            len(question.images),
            self.template,
            self.loaded.processor.tokenizer,
            image_token_id=self.loaded.model.config.image_token_id,
            image_ids=self.images.image_ids(question.images),
        )

    def stream(self, question: Question, write: Callable[[str], None]) -> Reply:
        """Answer one question and pass the text to ``write`` as it is produced (not with beams)."""
        try:
            prompt = self.encode(question)
            inputs = self.images.prepare(question.images)
            tokens = self._generate([prompt], inputs, self._limit(question), TextStreamer(self.loaded.processor, write))
        except M2PTError as error:
            return Reply(question, None, error.message, is_faulty=isinstance(error, InputError))
        return Reply(question, self._decode(tokens[0]))

    def run_one(self, question: Question) -> tuple[list[int], dict[str, torch.Tensor], list[int]]:
        """Return a question's prompt ids, its images on the device and its greedy answer's ids, for model analysis.

        Raises:
            InputError: the question or its image can't be read.
        """
        row = PrefixGroup(tuple(self.encode(question)), ((),), (0,))
        inputs = self.inputs(question)
        return list(row.prefix), inputs, self._run([row], [inputs], [question])[0][0]

    def inputs(self, question: Question) -> dict[str, torch.Tensor]:
        """Return a question's images as model inputs on the model's device. Raises InputError."""
        return self._to_device(self.images.prepare(question.images))

    def _open(self, row: PrefixGroup, questions: Sequence[Question]) -> dict[str, torch.Tensor] | M2PTError:
        """Return the prepared images of a prefix group, or the error."""
        try:
            return self.images.prepare(questions[row.members[0]].images)
        except M2PTError as error:
            return error

    def _answer_batch(
        self,
        batch: Sequence[PrefixGroup],
        images: Sequence[dict[str, torch.Tensor] | M2PTError],
        questions: Sequence[Question],
    ) -> Iterator[Reply]:
        rows, inputs = [], []
        for row, prepared in zip(batch, images, strict=True):
            if isinstance(prepared, M2PTError):
                is_faulty = isinstance(prepared, InputError)
                yield from (Reply(questions[member], None, prepared.message, is_faulty) for member in row.members)
            else:
                rows.append(row)
                inputs.append(prepared)
        # The batch is split again, because `batch_tokens` may have been lowered since it was planned.
        start = 0
        for part in plan_batches(rows, batch_tokens=self.batch_tokens):
            yield from self._answer_part(part, inputs[start : start + len(part)], questions)
            start += len(part)

    def _answer_part(
        self, rows: Sequence[PrefixGroup], inputs: Sequence[dict[str, torch.Tensor]], questions: Sequence[Question]
    ) -> Iterator[Reply]:
        """Answer prefix groups in one batch; if that fails, in halves, down to the single question that fails."""
        try:
            answers = self._run(rows, inputs, questions)
        except (RuntimeError, ValueError) as error:
            failure, parts = _first_line(error), _halves(rows, inputs)
            if not is_out_of_memory(error):
                parts = [([row], [one]) for row, one in zip(rows, inputs, strict=True)] if len(rows) > 1 else []
            elif parts:
                self.batch_tokens = max(1, padded_tokens(rows) // 2)
                self.report(f"out of memory: a batch of {_size(rows)} is answered in halves")
        else:
            for row, row_answers in zip(rows, answers, strict=True):
                for member, tokens in zip(row.members, row_answers, strict=True):
                    yield Reply(questions[member], self._decode(tokens))
            return
        # After the `except` block the exception is freed, and with it the frames whose tensors filled the memory.
        torch.cuda.empty_cache()
        for part_rows, part_inputs in parts:
            yield from self._answer_part(part_rows, part_inputs, questions)
        if not parts:
            yield from (Reply(questions[member], None, failure) for member in rows[0].members)

    def _run(
        self, rows: Sequence[PrefixGroup], inputs: Sequence[dict[str, torch.Tensor]], questions: Sequence[Question]
    ) -> list[list[list[int]]]:
        """Return the new token ids per prefix group and question."""
        if self.decoding.is_greedy:
            return answer_groups(
                self.loaded.model,
                rows,
                self._to_device(join_images(inputs)),
                limits=[[self._limit(questions[member]) for member in row.members] for row in rows],
                eos_ids=self.eos_ids,
                pad_id=self.pad_id,
            )
        # One question at a time: a sampled answer then depends only on the seed and its index, not on its batch.
        return [
            [
                self._generate([[*row.prefix, *tail]], prepared, self._limit(questions[member]))[0]
                for tail, member in zip(row.tails, row.members, strict=True)
            ]
            for row, prepared in zip(rows, inputs, strict=True)
        ]

    @torch.inference_mode()
    def _generate(
        self,
        prompts: Sequence[Sequence[int]],
        inputs: dict[str, torch.Tensor],
        limit: int,
        streamer: BaseStreamer | None = None,
    ) -> list[list[int]]:
        ids = torch.tensor(prompts, device=self.loaded.device)
        sampling: dict[str, Any] = {"do_sample": False, "num_beams": self.decoding.num_beams}
        if self.decoding.temperature > 0:
            sampling = {"do_sample": True, "temperature": self.decoding.temperature, "top_k": 0, "top_p": 1.0}
        out = self.loaded.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=limit,
            pad_token_id=self.pad_id,
            eos_token_id=sorted(self.eos_ids) or None,
            streamer=streamer,
            **sampling,
            **self._to_device(inputs),
        )
        return out[:, ids.shape[1] :].tolist()

    def _limit(self, question: Question) -> int:
        return question.max_new_tokens or self.decoding.max_new_tokens

    def _decode(self, tokens: Sequence[int]) -> str:
        return self.loaded.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()

    def _to_device(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        dtype = self.loaded.dtype
        return {
            key: value.to(self.loaded.device, dtype if value.is_floating_point() else None)
            for key, value in inputs.items()
        }


def default_batch_tokens(loaded: LoadedBase) -> int:
    """Return the padded tokens of a batch: on CUDA what half of the free memory holds, else a fixed number.

    A token takes the memory of its keys and values in every layer and temporarily of a few activations of the MLP.
    """
    if loaded.device.type != "cuda":
        return 1024
    free, _ = torch.cuda.mem_get_info(loaded.device)
    text = loaded.model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    size = torch.finfo(loaded.dtype).bits // 8
    per_token = size * (2 * text.num_hidden_layers * heads * width + 4 * text.intermediate_size + 8 * text.hidden_size)
    return int(min(max(free // 2 // per_token, 2048), 65536))


def _halves(
    rows: Sequence[PrefixGroup], inputs: Sequence[dict[str, torch.Tensor]]
) -> list[tuple[Sequence[PrefixGroup], Sequence[dict[str, torch.Tensor]]]]:
    """Split a batch in two by prefix groups, or the only group by questions; return none for a single question."""
    if len(rows) == 1:
        return [([part], inputs) for part in rows[0].halves()]
    middle = len(rows) // 2
    return [(rows[:middle], inputs[:middle]), (rows[middle:], inputs[middle:])]


def _size(rows: Sequence[PrefixGroup]) -> str:
    return f"{len(rows)} rows" if len(rows) > 1 else f"{len(rows[0].members)} questions about one image"


def _eos_ids(loaded: LoadedBase) -> frozenset[int]:
    configured = loaded.model.generation_config.eos_token_id
    if configured is None:
        configured = loaded.processor.tokenizer.eos_token_id
    if configured is None:
        return frozenset()
    return frozenset([configured] if isinstance(configured, int) else configured)


def _pad_id(loaded: LoadedBase, eos_ids: frozenset[int]) -> int:
    pad = loaded.processor.tokenizer.pad_token_id
    return pad if pad is not None else min(eos_ids, default=0)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
