"""Tokenize conversations and label the supervised tokens.

The whole text is tokenized once, and character offsets tell which tokens belong to the assistant. So the ids are the
same as those of the processor for the same text. Every assistant turn is supervised, its end token included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from m2pt_cli.data.chat import ChatTemplate, Rendered, question_turn
from m2pt_cli.data.sample import ImageReference, Sample, Turn, holds_no_character
from m2pt_cli.data.validation import ValidationReport
from m2pt_cli.errors import InputError, SettingsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNSUPERVISED = -100
# Conversations per tokenizer call: enough for its threads, few enough to bound the memory of the offsets.
_CHUNK = 1024


# The ids that stand for one image in a prompt, ``(n,)`` int32: image tokens, for some bases with marks around them.
ImageIds = NDArray[np.int32]


@dataclass(frozen=True)
class Encoded:
    """Token ids of one conversation.

    Attributes:
        input_ids: the ids, with every image expanded.
        labels: the ids of supervised tokens, -100 elsewhere.
        cut: number of tokens that were truncated at the end.
    """

    input_ids: list[int]
    labels: list[int]
    cut: int = 0


@dataclass(frozen=True)
class Tokens:
    """A tokenized conversation in which each image is still one token.

    Attributes:
        ids: ``(n,)`` int32.
        supervised: ``(n,)`` bool.
    """

    ids: NDArray[np.int32]
    supervised: NDArray[np.bool_]

    def expand(self, image_token_id: int, image_ids: Sequence[ImageIds], max_length: int | None = None) -> Encoded:
        """Replace the i-th image token by ``image_ids[i]``, then truncate to ``max_length``."""
        repeats = np.ones(len(self.ids), np.int64)
        is_image = self.ids == image_token_id
        repeats[is_image] = [len(one) for one in image_ids]
        ids = np.repeat(self.ids, repeats)
        if image_ids:
            ids[np.repeat(is_image, repeats)] = np.concatenate(image_ids)
        labels = np.where(np.repeat(self.supervised, repeats), ids, UNSUPERVISED)
        cut = 0 if max_length is None else max(0, len(ids) - max_length)
        kept = len(ids) - cut
        return Encoded(ids[:kept].tolist(), labels[:kept].tolist(), cut)


@dataclass(frozen=True)
class EncodedSample:
    """A sample with its token ids: the input of `Collator`."""

    sample: Sample
    encoded: Encoded


class EncodedSamples(Sequence[EncodedSample]):
    """Samples and their tokens; image tokens are expanded when an item is accessed.

    Attributes:
        samples: the samples that were kept.
        lengths: number of tokens of every sample, at most ``max_length``.
        num_cut: number of samples that are truncated.
        faults: number of samples that were dropped: truncation would remove a part of an image or all supervised
            tokens, or the number of image tokens differs from that of the images.
        num_supervised: number of supervised tokens of all samples, before truncation.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        tokens: Sequence[Tokens],
        image_ids: Sequence[Sequence[ImageIds]],
        *,
        image_token_id: int,
        max_length: int,
        faults: int,
    ) -> None:
        self.samples = samples
        self.faults = faults
        self._tokens = tokens
        self._image_ids = image_ids
        self._image_token_id = image_token_id
        self._max_length = max_length
        full = [len(t.ids) + sum(len(i) - 1 for i in own) for t, own in zip(tokens, image_ids, strict=True)]
        self.lengths = [min(length, max_length) for length in full]
        self.num_cut = sum(length > max_length for length in full)
        self.num_supervised = sum(int(t.supervised.sum()) for t in tokens)

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> EncodedSample: ...
    @overload
    def __getitem__(self, index: slice) -> list[EncodedSample]: ...
    def __getitem__(self, index: int | slice) -> EncodedSample | list[EncodedSample]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        encoded = self._tokens[index].expand(self._image_token_id, self._image_ids[index], self._max_length)
        return EncodedSample(self.samples[index], encoded)


def encode_samples(
    samples: Sequence[Sample],
    template: ChatTemplate,
    tokenizer: PreTrainedTokenizerBase,
    *,
    image_token_id: int,
    image_ids: Callable[[Sequence[ImageReference]], Sequence[ImageIds]],
    max_length: int,
    skip_bad: bool = False,
) -> EncodedSamples:
    """Tokenize samples and check that truncation keeps their images and some supervised tokens.

    Args:
        samples: checked samples.
        template: renders the conversations.
        tokenizer: a fast tokenizer, whose offsets tell where the answers are.
        image_token_id: the id of the image token.
        image_ids: returns the ids that stand for each image of a sample.
        max_length: longer conversations are truncated at the end.
        skip_bad: drop and count faulty samples instead of raising.

    Raises:
        InputError: samples are faulty, see ``EncodedSamples.faults``; the message lists the first 20 and their number.
        SettingsError: the tokenizer returns no offsets or has no end-of-sequence token.
    """
    eos = _eos(tokenizer)
    faults = ValidationReport(skip_bad=skip_bad)
    kept: list[Sample] = []
    kept_tokens: list[Tokens] = []
    kept_images: list[tuple[ImageIds, ...]] = []
    for start in range(0, len(samples), _CHUNK):
        chunk = samples[start : start + _CHUNK]
        rendered = [template.render(sample.turns, eos=eos) for sample in chunk]
        for sample, tokens in zip(chunk, _tokenise(rendered, tokenizer), strict=True):
            try:
                own = tuple(image_ids(sample.images))
                reason = _fault(tokens, [len(ids) for ids in own], image_token_id, max_length)
            except InputError as error:
                reason = error.message
            if reason is not None:
                faults.add(f"sample {sample.id}", reason)
                continue
            kept.append(sample)
            kept_tokens.append(tokens)
            kept_images.append(own)
    faults.raise_any("raise --max-length, or drop these samples with --skip-bad")
    return EncodedSamples(
        kept, kept_tokens, kept_images, image_token_id=image_token_id, max_length=max_length, faults=faults.total
    )


def encode_conversation(
    turns: Sequence[Turn],
    template: ChatTemplate,
    tokenizer: PreTrainedTokenizerBase,
    *,
    image_token_id: int,
    image_ids: Sequence[ImageIds] = (),
    max_length: int | None = None,
) -> Encoded:
    """Ids and labels of one conversation; if the last turn is the user's, it ends with the generation prompt.

    Args:
        image_ids: number of tokens of each image, in order.

    Raises:
        InputError: the number of ``<image>`` differs from that of the images, or truncation would remove a part of an
            image or all supervised tokens.
    """
    tokens = next(_tokenise([template.render(turns, eos=_eos(tokenizer))], tokenizer))
    reason = _fault(
        tokens, [len(ids) for ids in image_ids], image_token_id, max_length, is_prompt=turns[-1].role == "user"
    )
    if reason is not None:
        raise InputError(reason)
    return tokens.expand(image_token_id, image_ids, max_length)


def encode_prompt(
    question: str,
    num_images: int,
    template: ChatTemplate,
    tokenizer: PreTrainedTokenizerBase,
    *,
    image_token_id: int,
    image_ids: Sequence[ImageIds] = (),
) -> list[int]:
    """Ids of a question about ``num_images`` images, ending with the generation prompt (``ASSISTANT:``).

    Raises:
        InputError: the question contains ``<image>``, but not once per image, or it contains invalid Unicode.
    """
    if holds_no_character(question):
        raise InputError(f"the question holds what is no character: {ascii(question)[:80]}")
    turn = question_turn(question, num_images)
    return encode_conversation(
        [turn], template, tokenizer, image_token_id=image_token_id, image_ids=image_ids
    ).input_ids


def _tokenise(rendered: Sequence[Rendered], tokenizer: PreTrainedTokenizerBase) -> Iterator[Tokens]:
    if not tokenizer.is_fast:
        raise SettingsError(f"{type(tokenizer).__name__} tells no offsets: a fast tokenizer is needed")
    texts = [item.text for item in rendered]
    # A template may write the beginning-of-sequence token itself; the tokenizer must not add a second one.
    bos = tokenizer.bos_token
    has_bos = bool(texts) and bos is not None and texts[0].startswith(bos)
    batch = tokenizer(
        texts,
        add_special_tokens=not has_bos,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    for item, ids, offsets in zip(rendered, batch["input_ids"], batch["offset_mapping"], strict=True):
        supervised = np.zeros(len(ids), np.bool_)
        if item.spans:
            starts, ends = np.array(offsets, np.int64).T
            for start, end in item.spans:
                # A zero-width token is a space that a byte-level tokenizer trimmed from its offsets.
                supervised |= (starts < end) & (ends > start) & ((starts < ends) | (starts > start))
        yield Tokens(np.array(ids, np.int32), supervised)


def _fault(
    tokens: Tokens,
    image_tokens: Sequence[int],
    image_token_id: int,
    max_length: int | None,
    *,
    is_prompt: bool = False,
) -> str | None:
    """Why a conversation can't be used, or None if it can."""
    image_positions = np.flatnonzero(tokens.ids == image_token_id)
    if len(image_positions) != len(image_tokens):
        return f"{len(image_positions)} image tokens in the text for {len(image_tokens)} images"
    if is_prompt:
        return None
    supervised = np.flatnonzero(tokens.supervised)
    if not len(supervised):
        return "no supervised tokens"
    if max_length is None or len(tokens.ids) + sum(image_tokens) - len(image_tokens) <= max_length:
        return None
    # shift[i]: how far the expansion of the first i images moves the tokens after them.
    shift = np.concatenate([[0], np.cumsum(np.array(image_tokens, np.int64) - 1)])
    if len(image_positions) and image_positions[-1] + 1 + shift[-1] > max_length:
        return f"its image reaches beyond {max_length} tokens"
    first = supervised[0] + shift[int(np.searchsorted(image_positions, supervised[0]))]
    if first >= max_length:
        return f"its answer begins beyond {max_length} tokens"
    return None


def _eos(tokenizer: PreTrainedTokenizerBase) -> str:
    eos: Any = tokenizer.eos_token
    if not eos:
        raise SettingsError("the tokenizer of this base has no end-of-sequence token: answers could not end")
    return str(eos)
