"""Answer questions in batches: the same tokens as ``generate`` for one question at a time, but several times faster.

Greedy decoding computes the common prefix of all questions about an image once (see `prefix_sharing`); sampling and
beam search use transformers' ``generate``. If a question fails, its reply has an error; the others are still answered.
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
from m2pt_cli.errors import M2PTError, is_out_of_memory
from m2pt_cli.generation.prefetch import prefetched
from m2pt_cli.generation.prefix_sharing import PrefixGroup, answer_groups, padded_tokens, plan_batches, plan_groups
from m2pt_cli.generation.stream import TextStreamer

if TYPE_CHECKING:
    from m2pt_cli.models.load import LoadedBase


@dataclass(frozen=True)
class Question:
    """A question about images, or a text-only question if ``images`` is empty.

    ``max_new_tokens`` overrides the engine's limit.
    """

    id: str
    text: str
    images: tuple[ImageReference, ...] = ()
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class Reply:
    """The answer to a question; if there is none, ``text`` is None and ``error`` says why."""

    question: Question
    text: str | None
    error: str | None = None


@dataclass(frozen=True)
class Decoding:
    """Decoding parameters; greedy with temperature 0 and one beam."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    num_beams: int = 1
    seed: int = 0

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0 and self.num_beams == 1


class AnswerEngine:
    """Answers questions with one model: the base model, or a PeftModel with its active adapter.

    Args:
        loaded: base, processor and device; ``loaded.model`` may be a PeftModel.
        template: name of the chat template.
        image_fit: ``crop``, ``pad`` or ``base``.
        decoding: greedy, sampling or beam search, and the maximum length of an answer.
        batch_tokens: maximum number of tokens in a batch, padding included; by default see `default_batch_tokens`.
        report: called with a line of text when a batch did not fit in memory and is halved.
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
        """Yield replies as they are generated; questions about the same image are answered together.

        Args:
            questions: all questions; batches are planned from the whole list.
            known: returns True for a question that is answered already and gets no reply. A batch of only known
                questions is skipped; other batches run as planned, so that a resumed run computes the same as an
                uninterrupted one.
        """
        asked = list(questions)
        known_ids = {question.id for question in asked if known is not None and known(question)}
        prompts, encodable = [], []
        for question in asked:
            try:
                prompts.append(self.encode(question))
                encodable.append(question)
            except M2PTError as error:
                if question.id not in known_ids:
                    yield Reply(question, None, error.message)
        keys = [tuple(image.name for image in question.images) for question in encodable]
        groups = plan_groups(prompts, keys, image_token_id=self.loaded.model.config.image_token_id)
        batches = [
            batch
            for batch in plan_batches(groups, batch_tokens=self.batch_tokens)
            if any(encodable[member].id not in known_ids for group in batch for member in group.members)
        ]
        with closing(prefetched(batches, lambda group: self._open(group, encodable))) as prepared:
            for batch, images in prepared:
                for reply in self._answer_batch(batch, images, encodable):
                    if reply.question.id not in known_ids:
                        yield reply

    def encode(self, question: Question) -> list[int]:
        """Token ids of a question's whole prompt, ending with the generation prompt."""
        return encode_prompt(
            question.text,
            len(question.images),
            self.template,
            self.loaded.processor.tokenizer,
            image_token_id=self.loaded.model.config.image_token_id,
            image_ids=self.images.image_ids(question.images),
        )

    def stream(self, question: Question, write: Callable[[str], None]) -> Reply:
        """Answer one question, and call ``write`` with the text as it is generated (not with beam search)."""
        try:
            prompt = self.encode(question)
            inputs = self.images.prepare(question.images)
            tokens = self._generate([prompt], inputs, self._limit(question), TextStreamer(self.loaded.processor, write))
        except M2PTError as error:
            return Reply(question, None, error.message)
        return Reply(question, self._decode(tokens[0]))

    def run_one(self, question: Question) -> tuple[list[int], dict[str, torch.Tensor], list[int]]:
        """Answer one question greedily; returns prompt ids, image inputs on the device, and answer ids.

        Used to analyse the model's attention.

        Raises:
            InputError: the question or its image can't be read.
        """
        group = PrefixGroup(tuple(self.encode(question)), ((),), (0,))
        inputs = self.inputs(question)
        return list(group.prefix), inputs, self._run([group], [inputs], [question])[0][0]

    def inputs(self, question: Question) -> dict[str, torch.Tensor]:
        """The image inputs of a question, on the model's device. Raises InputError if an image can't be read."""
        return self._to_device(self.images.prepare(question.images))

    def _open(self, group: PrefixGroup, questions: Sequence[Question]) -> dict[str, torch.Tensor] | str:
        """The preprocessed images of a group, or the error message if an image can't be read."""
        try:
            return self.images.prepare(questions[group.members[0]].images)
        except M2PTError as error:
            return error.message

    def _answer_batch(
        self,
        batch: Sequence[PrefixGroup],
        images: Sequence[dict[str, torch.Tensor] | str],
        questions: Sequence[Question],
    ) -> Iterator[Reply]:
        groups, inputs = [], []
        for group, prepared in zip(batch, images, strict=True):
            if isinstance(prepared, str):
                yield from (Reply(questions[member], None, prepared) for member in group.members)
            else:
                groups.append(group)
                inputs.append(prepared)
        # An earlier batch may have run out of memory and reduced batch_tokens, so the batch is planned again.
        start = 0
        for part in plan_batches(groups, batch_tokens=self.batch_tokens):
            yield from self._answer_or_split(part, inputs[start : start + len(part)], questions)
            start += len(part)

    def _answer_or_split(
        self, groups: Sequence[PrefixGroup], inputs: Sequence[dict[str, torch.Tensor]], questions: Sequence[Question]
    ) -> Iterator[Reply]:
        """Answer a batch; if that fails, retry in smaller batches. A batch that can't be split gets error replies."""
        try:
            answers = self._run(groups, inputs, questions)
        except (RuntimeError, ValueError) as error:
            failure, parts = _first_line(error), _halves(groups, inputs)
            if not is_out_of_memory(error):
                parts = [([group], [one]) for group, one in zip(groups, inputs, strict=True)] if len(groups) > 1 else []
            elif parts:
                self.batch_tokens = max(1, padded_tokens(groups) // 2)
                self.report(f"out of memory: a batch of {_size(groups)} is answered in halves")
        else:
            for group, group_answers in zip(groups, answers, strict=True):
                for member, tokens in zip(group.members, group_answers, strict=True):
                    yield Reply(questions[member], self._decode(tokens))
            return
        # Outside the except block the exception is released, and with it the frames whose tensors filled the memory.
        torch.cuda.empty_cache()
        for part_groups, part_inputs in parts:
            yield from self._answer_or_split(part_groups, part_inputs, questions)
        if not parts:
            yield from (Reply(questions[member], None, failure) for member in groups[0].members)

    def _run(
        self, groups: Sequence[PrefixGroup], inputs: Sequence[dict[str, torch.Tensor]], questions: Sequence[Question]
    ) -> list[list[list[int]]]:
        """New token ids per group and question."""
        if self.decoding.is_greedy:
            return answer_groups(
                self.loaded.model,
                groups,
                self._to_device(join_images(inputs)),
                limits=[[self._limit(questions[member]) for member in group.members] for group in groups],
                eos_ids=self.eos_ids,
                pad_id=self.pad_id,
            )
        # One question at a time: a sampled answer must not depend on the batch, only on the seed and the order.
        return [
            [
                self._generate([[*group.prefix, *tail]], prepared, self._limit(questions[member]))[0]
                for tail, member in zip(group.tails, group.members, strict=True)
            ]
            for group, prepared in zip(groups, inputs, strict=True)
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
    """Default number of padded tokens in a batch: on CUDA what fits in half of the free memory (2,048 to 65,536).

    Elsewhere 1,024, enough to use the CPU caches well.
    A token takes memory for its keys and values in every layer, and for a few activations while it is computed.
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
    groups: Sequence[PrefixGroup], inputs: Sequence[dict[str, torch.Tensor]]
) -> list[tuple[Sequence[PrefixGroup], Sequence[dict[str, torch.Tensor]]]]:
    """Split a batch in two by its groups; a single group by its questions; a single question gives no batches."""
    if len(groups) == 1:
        return [([part], inputs) for part in groups[0].halves()]
    middle = len(groups) // 2
    return [(groups[:middle], inputs[:middle]), (groups[middle:], inputs[middle:])]


def _size(groups: Sequence[PrefixGroup]) -> str:
    return f"{len(groups)} rows" if len(groups) > 1 else f"{len(groups[0].members)} questions about one image"


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
