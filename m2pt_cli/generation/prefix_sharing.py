"""Greedy decoding of several questions about one image, whose common prefix is computed once."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache

from m2pt_cli.generation.partial_forward import partial_forward
from m2pt_cli.method.calls import cache_argument

# The attention mask of a group has (questions x tokens)^2 entries: beyond this, a second batch row is cheaper.
MAX_QUESTIONS_PER_ROW = 64


@dataclass(frozen=True)
class PrefixGroup:
    """Questions about the same images; they share one batch row.

    Attributes:
        prefix: the token ids that all prompts start with: template, images, and the first words in common.
        tails: for each question, the ids after the prefix. A group of one question has one empty tail, and the prefix
            is its whole prompt.
        members: for each tail, the index of its question in the list given to `plan_groups`.
    """

    prefix: tuple[int, ...]
    tails: tuple[tuple[int, ...], ...]
    members: tuple[int, ...]

    @property
    def is_single(self) -> bool:
        return len(self.members) == 1

    @property
    def num_tokens(self) -> int:
        return len(self.prefix) + sum(len(tail) for tail in self.tails)

    def halves(self) -> list[PrefixGroup]:
        """Split into two groups with half of the questions each; an empty list for a group of one question."""
        middle = len(self.members) // 2
        return [self._part(slice(0, middle)), self._part(slice(middle, None))] if middle else []

    def _part(self, part: slice) -> PrefixGroup:
        tails, members = self.tails[part], self.members[part]
        if len(members) == 1:
            return PrefixGroup(self.prefix + tails[0], ((),), members)
        return PrefixGroup(self.prefix, tails, members)


def padded_tokens(groups: Sequence[PrefixGroup]) -> int:
    """Number of tokens in a batch, padding included."""
    return len(groups) * max(group.num_tokens for group in groups)


def plan_groups(
    prompts: Sequence[Sequence[int]], keys: Sequence[Hashable], *, image_token_id: int
) -> list[PrefixGroup]:
    """Group questions by their images, in the order of each group's first question; the result is deterministic.

    Args:
        prompts: token ids of every question's whole prompt, with image tokens repeated as the model expects.
        keys: a key for each question's images; questions with equal keys can share a group.
        image_token_id: questions share a group only if all image tokens are in their common prefix.
    """
    by_key: dict[Hashable, list[int]] = {}
    for number, key in enumerate(keys):
        by_key.setdefault(key, []).append(number)
    groups = []
    for members in by_key.values():
        for start in range(0, len(members), MAX_QUESTIONS_PER_ROW):
            groups += _group(members[start : start + MAX_QUESTIONS_PER_ROW], prompts, image_token_id)
    return groups


def _group(members: list[int], prompts: Sequence[Sequence[int]], image_token_id: int) -> list[PrefixGroup]:
    """One group of all ``members``, or one each if they can't share a prefix."""
    shared = _common_length([prompts[member] for member in members])
    images_inside = all(image_token_id not in prompts[member][shared:] for member in members)
    if len(members) == 1 or shared == 0 or not images_inside:
        return [PrefixGroup(tuple(prompts[member]), ((),), (member,)) for member in members]
    prefix = tuple(prompts[members[0]][:shared])
    return [PrefixGroup(prefix, tuple(tuple(prompts[member][shared:]) for member in members), tuple(members))]


def _common_length(prompts: list[Sequence[int]]) -> int:
    """Length of the common prefix, limited so that every prompt has at least one token after it."""
    length = min(len(prompt) for prompt in prompts) - 1
    first = prompts[0]
    for prompt in prompts[1:]:
        length = next((i for i in range(length) if prompt[i] != first[i]), length)
    return max(length, 0)


def plan_batches(groups: Sequence[PrefixGroup], *, batch_tokens: int) -> Iterator[list[PrefixGroup]]:
    """Split groups into consecutive batches of at most ``batch_tokens`` padded tokens, with at least one group each.

    All groups of a batch have one question, or all have several.
    """
    batch: list[PrefixGroup] = []
    for group in groups:
        is_other_kind = bool(batch) and batch[0].is_single != group.is_single
        if batch and (is_other_kind or padded_tokens([*batch, group]) > batch_tokens):
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


@dataclass
class _Generation:
    """The state of one question while its answer is generated."""

    row: int  # batch row
    tail: int  # index of the question in its group
    limit: int  # maximum number of new tokens; 0 once the answer has ended
    position: int  # position id of the first new token
    tokens: list[int] = field(default_factory=list)  # new tokens


@torch.inference_mode()
def answer_groups(
    model: torch.nn.Module,
    groups: Sequence[PrefixGroup],
    image_inputs: Mapping[str, torch.Tensor],
    *,
    limits: Sequence[Sequence[int]],
    eos_ids: frozenset[int],
    pad_id: int,
) -> list[list[list[int]]]:
    """Answer a batch greedily; returns new token ids per group and question, without the end-of-sequence token.

    Args:
        model: a LLaVA, or a PeftModel of one, in eval mode.
        groups: groups that all have one question, or all several (see `plan_batches`).
        image_inputs: image inputs of the model (``pixel_values``, ``image_sizes``), the images of all groups in order.
        limits: for each group and question, the maximum number of new tokens.
        eos_ids: ids that end an answer.
        pad_id: any valid id, used for padding.
    """
    state = _BatchState.prefill(model, groups, image_inputs, pad_id)
    generations = [
        _Generation(row=r, tail=t, limit=limits[r][t], position=len(group.prefix) + len(tail))
        for r, group in enumerate(groups)
        for t, tail in enumerate(group.tails)
    ]
    next_tokens = state.first_tokens(groups) if groups[0].is_single else state.prefill_tails(groups)
    active = generations
    while True:
        for generation, token in zip(active, next_tokens, strict=True):
            if token in eos_ids:
                generation.limit = 0
            elif len(generation.tokens) < generation.limit:
                generation.tokens.append(token)
        active = [generation for generation in active if len(generation.tokens) < generation.limit]
        if not active:
            break
        state.drop_finished(active)
        next_tokens = state.step(active)
    tokens_of = {(generation.row, generation.tail): generation.tokens for generation in generations}
    return [[tokens_of[r, t] for t in range(len(group.tails))] for r, group in enumerate(groups)]


class _BatchState:
    """The KV cache of a batch, and which question (tail) of a row every cached key belongs to."""

    def __init__(self, model: torch.nn.Module, cache: DynamicCache, mask: torch.Tensor, logits: torch.Tensor) -> None:
        self.model = model
        self.cache = cache
        self.prefix_mask = mask.bool()  # (rows, p): False for padding
        self.lengths = mask.sum(-1)  # (rows,): length of each prefix
        self.logits = logits
        # (rows, keys after the prefix): index of the tail that a key belongs to, -1 for padding
        self.owner = torch.empty(mask.shape[0], 0, dtype=torch.long, device=mask.device)
        self.batch_rows = list(range(mask.shape[0]))  # cache row -> batch row; they differ after drop_finished
        self.pad_id = 0

    @classmethod
    def prefill(
        cls,
        model: torch.nn.Module,
        groups: Sequence[PrefixGroup],
        image_inputs: Mapping[str, torch.Tensor],
        pad_id: int,
    ) -> _BatchState:
        """Run the model on all prefixes."""
        device = next(model.parameters()).device
        width = max(len(group.prefix) for group in groups)
        # With left padding the last prefix token of every row, whose logits may be read, is in the last column.
        ids = torch.full((len(groups), width), pad_id)
        mask = torch.zeros_like(ids)
        for r, group in enumerate(groups):
            ids[r, width - len(group.prefix) :] = torch.tensor(group.prefix)
            mask[r, width - len(group.prefix) :] = 1
        ids, mask = ids.to(device), mask.to(device)
        cache = DynamicCache(config=model.config.get_text_config())  # type: ignore[union-attr, operator]
        with partial_forward(model, torch.tensor([width - 1])):
            out = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                use_cache=True,
                **{cache_argument(model): cache},
                # The logits of a shared prefix are not read: the tails follow.
                logits_to_keep=1 if groups[0].is_single else torch.empty(0, dtype=torch.long, device=device),
                **image_inputs,
            )
        state = cls(model, cache, mask, out.logits)
        state.pad_id = pad_id
        return state

    def first_tokens(self, groups: Sequence[PrefixGroup]) -> list[int]:
        """The first new token of every group; all groups have one question."""
        assert all(group.is_single for group in groups)
        return self.logits[:, -1].argmax(-1).tolist()

    def prefill_tails(self, groups: Sequence[PrefixGroup]) -> list[int]:
        """Run the model on all tails; returns the first new token of every question, group by group."""
        width = max(sum(len(tail) for tail in group.tails) for group in groups)
        ids = torch.full((len(groups), width), self.pad_id)
        owner = torch.full_like(ids, -1)
        offset = torch.zeros_like(ids)
        ends: list[tuple[int, int]] = []
        for r, group in enumerate(groups):
            start = 0
            for t, tail in enumerate(group.tails):
                stop = start + len(tail)
                ids[r, start:stop] = torch.tensor(tail)
                owner[r, start:stop] = t
                offset[r, start:stop] = torch.arange(len(tail))
                ends.append((r, stop - 1))
                start = stop
        causal = torch.ones(width, width, dtype=torch.bool).tril()
        keep = torch.tensor(sorted({column for _, column in ends}))
        logits = self._forward(ids, owner, self.lengths[:, None].cpu() + offset, keep, causal)
        index_of = {column: i for i, column in enumerate(keep.tolist())}
        picked = torch.tensor([index_of[column] for _, column in ends], device=logits.device)
        return logits[torch.tensor([r for r, _ in ends], device=logits.device), picked].argmax(-1).tolist()

    def step(self, active: Sequence[_Generation]) -> list[int]:
        """Run the model on the last token of every active question; returns their next tokens."""
        column_of: list[int] = []
        used = [0] * len(self.batch_rows)
        cache_row = {row: i for i, row in enumerate(self.batch_rows)}
        for generation in active:
            column_of.append(used[cache_row[generation.row]])
            used[cache_row[generation.row]] += 1
        width = max(used)
        ids = torch.full((len(self.batch_rows), width), self.pad_id)
        owner = torch.full_like(ids, -1)
        positions = torch.zeros_like(ids)
        for generation, column in zip(active, column_of, strict=True):
            r = cache_row[generation.row]
            ids[r, column] = generation.tokens[-1]
            owner[r, column] = generation.tail
            positions[r, column] = generation.position + len(generation.tokens) - 1
        logits = self._forward(ids, owner, positions, None, torch.eye(width, dtype=torch.bool))
        rows = torch.tensor([cache_row[generation.row] for generation in active], device=logits.device)
        return logits[rows, torch.tensor(column_of, device=logits.device)].argmax(-1).tolist()

    def drop_finished(self, active: Sequence[_Generation]) -> None:
        """Remove rows without an active question from the cache, if they are half of its rows or more.

        Removing rows copies the cache, so it must not happen at every step.
        """
        active_rows = {generation.row for generation in active}
        kept = [i for i, row in enumerate(self.batch_rows) if row in active_rows]
        if 2 * len(kept) > len(self.batch_rows):
            return
        index = torch.tensor(kept, device=self.prefix_mask.device)
        self.cache.batch_select_indices(index)
        self.prefix_mask, self.lengths, self.owner = self.prefix_mask[index], self.lengths[index], self.owner[index]
        self.batch_rows = [self.batch_rows[i] for i in kept]

    def _forward(
        self,
        ids: torch.Tensor,
        owner: torch.Tensor,
        positions: torch.Tensor,
        keep: torch.Tensor | None,
        within: torch.Tensor,
    ) -> torch.Tensor:
        """Run the model on new tokens and extend the cache.

        A token attends to its row's prefix and to tokens of its own question.

        Args:
            ids: ``(rows, n)``.
            owner: ``(rows, n)``, index of each token's question in its group, -1 for padding.
            positions: ``(rows, n)`` position ids.
            keep: columns whose logits are returned; None for all.
            within: ``(n, n)``, True where a new token (row) may attend to a new token (column) of its question.

        Returns:
            Logits ``(rows, kept, vocabulary)``.
        """
        device, dtype = self.prefix_mask.device, self.logits.dtype
        ids, owner, positions, within = ids.to(device), owner.to(device), positions.to(device), within.to(device)
        rows, width = ids.shape
        same = owner[:, :, None] == torch.cat([self.owner, owner], 1)[:, None, :]  # (rows, n, keys after the prefix)
        same[:, :, self.owner.shape[1] :] &= within
        visible = torch.cat([self.prefix_mask[:, None, :].expand(rows, width, -1), same], 2)
        # Additive: the only form that all attention implementations of transformers accept.
        mask = torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, torch.finfo(dtype).min)
        self.owner = torch.cat([self.owner, owner], 1)
        # Without images and with all columns wanted, there is nothing to skip.
        with nullcontext() if keep is None else partial_forward(self.model, keep):
            out = self.model(
                input_ids=ids,
                attention_mask=mask[:, None],
                position_ids=positions,
                logits_to_keep=0 if keep is None else keep.to(device),
                use_cache=True,
                **{cache_argument(self.model): self.cache},
            )
        return out.logits
