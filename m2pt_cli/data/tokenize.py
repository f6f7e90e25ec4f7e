"""Convert conversations to token ids and labels.

The whole text is tokenised once and the answers are located through character offsets, so that the ids are those that
the processor gives for the same text. Every assistant turn and its end token are supervised, unless the turn has
``supervised=False``. Special tokens typed in a turn are plain text (`m2pt_cli.data.typed_tokens`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from m2pt_cli.data.chat import ChatTemplate, image_first, question_turn
from m2pt_cli.data.sample import ImageReference, Sample, Turn, holds_no_character
from m2pt_cli.data.typed_tokens import escaped, typed_tokens
from m2pt_cli.data.validation import ValidationReport
from m2pt_cli.errors import InputError, SettingsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNSUPERVISED = -100
# Conversations tokenised in one call: enough to keep the tokenizer busy, few enough to keep its offsets small.
_CHUNK = 1024


# The ids that stand for one image in a prompt, ``(n,)`` int32: image tokens, for some bases with delimiters around.
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
    """A tokenised conversation in which each image is still one token.

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
    """A sample with its ids, the input of a collator."""

    sample: Sample
    encoded: Encoded


class EncodedSamples(Sequence[EncodedSample]):
    """Samples and their tokens; each is expanded when it is accessed.

    Attributes:
        lengths: tokens of every sample, cut to ``max_length``.
        num_cut: samples that were too long and are cut at the end.
        faults: number of samples dropped because truncation would remove all supervised tokens or a part of an image.
        num_supervised: supervised tokens of all samples together, after truncation.
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
        self.num_supervised = sum(
            sum(label != UNSUPERVISED for label in self[index].encoded.labels)
            if length > max_length
            else int(tokens[index].supervised.sum())
            for index, length in enumerate(full)
        )

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
    """Tokenise samples and check them after truncation.

    Args:
        samples: checked samples.
        template: renders the conversations.
        tokenizer: a fast tokenizer, whose offsets locate the answers.
        image_token_id: the id of the image token.
        image_ids: returns the ids that stand for each image of a sample.
        max_length: longer conversations are truncated at the end.
        skip_bad: drop and count faulty samples instead of raising.

    Raises:
        InputError: truncation would remove an image or all supervised tokens; lists the first 20 samples and a count.
        SettingsError: the tokenizer gives no offsets, has no end of sequence, or does not know the image token.
    """
    eos = _eos(tokenizer)
    faults = ValidationReport(skip_bad=skip_bad)
    kept: list[Sample] = []
    kept_tokens: list[Tokens] = []
    kept_images: list[tuple[ImageIds, ...]] = []
    for start in range(0, len(samples), _CHUNK):
        chunk = samples[start : start + _CHUNK]
        for sample, tokens in zip(
            chunk, _tokenise([sample.turns for sample in chunk], template, eos, tokenizer), strict=True
        ):
            if isinstance(tokens, InputError):
                faults.add(f"sample {sample.id}", tokens.message)
                continue
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
    """Return ids and labels of one conversation; after a user's last turn it ends with the generation prompt.

    Args:
        image_ids: the ids that stand for each image, in order.

    Raises:
        InputError: ``<image>`` does not occur once per image, or an image or every supervised token would be cut off.
    """
    tokens = next(_tokenise([turns], template, _eos(tokenizer), tokenizer))
    if isinstance(tokens, InputError):
        raise tokens
    counts = [len(ids) for ids in image_ids]
    reason = _fault(tokens, counts, image_token_id, max_length, is_prompt=turns[-1].role == "user")
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
    """Return the prompt ids of a question about ``num_images`` images, which end with ``ASSISTANT:`` or its equivalent.

    Raises:
        InputError: the question contains ``<image>``, but not once per image, or it contains invalid Unicode.
    """
    if holds_no_character(question):
        raise InputError(f"the question holds what is no character: {ascii(question)[:80]}")
    turn = question_turn(question, num_images)
    return encode_conversation(
        [turn], template, tokenizer, image_token_id=image_token_id, image_ids=image_ids
    ).input_ids


def _tokenise(
    conversations: Sequence[Sequence[Turn]], template: ChatTemplate, eos: str, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Tokens | InputError]:
    """Return the tokens of each conversation, or the reason why it has none."""
    if not tokenizer.is_fast:
        raise SettingsError(f"{type(tokenizer).__name__} tells no offsets: a fast tokenizer is needed")
    plain = [escaped([_with_image_first(turn) for turn in turns], tokenizer) for turns in conversations]
    rendered = [
        template.render(item.turns if item.typed else turns, eos=eos)
        for item, turns in zip(plain, conversations, strict=True)
    ]
    # A template may write the BOS token itself; it must not occur twice.
    bos = tokenizer.bos_token
    has_bos = bool(rendered) and bos is not None and rendered[0].text.startswith(bos)
    texts = [item.text for item, original in zip(rendered, plain, strict=True) if not original.typed]
    batch = texts and tokenizer(
        texts,
        add_special_tokens=not has_bos,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    encoded = zip(batch["input_ids"], batch["offset_mapping"], strict=True) if batch else iter(())
    for item, original in zip(rendered, plain, strict=True):
        if not original.typed:
            ids, offsets = next(encoded)
            yield _labelled(ids, offsets, item.spans)
            continue
        try:
            found = typed_tokens(item.text, item.spans, original.typed, tokenizer, add_special_tokens=not has_bos)
        except InputError as error:
            yield error
        else:
            yield _labelled(found.ids, found.offsets, found.spans)


def _with_image_first(turn: Turn) -> Turn:
    """Move ``<image>`` as a template will: the text around it may then join to a special token."""
    text = image_first(turn.text) if turn.role == "user" else turn.text
    return turn if text == turn.text else replace(turn, text=text)


def _labelled(ids: Sequence[int], offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> Tokens:
    supervised = np.zeros(len(ids), np.bool_)
    if spans:
        starts, ends = np.array(offsets, np.int64).T
        for start, end in spans:
            # A token of zero width is a space that a byte-level tokenizer trimmed from its offsets.
            supervised |= (starts < end) & (ends > start) & ((starts < ends) | (starts > start))
    return Tokens(np.array(ids, np.int32), supervised)


def _fault(
    tokens: Tokens,
    image_tokens: Sequence[int],
    image_token_id: int,
    max_length: int | None,
    *,
    is_prompt: bool = False,
) -> str | None:
    """Return the reason why a conversation can't be trained on, or None."""
    marks = np.flatnonzero(tokens.ids == image_token_id)
    if len(marks) != len(image_tokens):
        return f"{len(marks)} image tokens in the text for {len(image_tokens)} images"
    if is_prompt:
        return None
    supervised = np.flatnonzero(tokens.supervised)
    if not len(supervised):
        return "no supervised tokens"
    if max_length is None or len(tokens.ids) + sum(image_tokens) - len(image_tokens) <= max_length:
        return None
    # The index of a token after the images before it are expanded.
    grown = np.concatenate([[0], np.cumsum(np.array(image_tokens, np.int64) - 1)])
    if len(marks) and marks[-1] + 1 + grown[-1] > max_length:
        return f"its image reaches beyond {max_length} tokens"
    first = supervised[0] + grown[int(np.searchsorted(marks, supervised[0]))]
    if first >= max_length:
        return f"its answer begins beyond {max_length} tokens"
    return None


def _eos(tokenizer: PreTrainedTokenizerBase) -> str:
    eos: Any = tokenizer.eos_token
    if not eos:
        raise SettingsError("the tokenizer of this base has no end-of-sequence token: answers could not end")
    return str(eos)
