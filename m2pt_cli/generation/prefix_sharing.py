"""Greedy answers to several questions about one image from one shared prefix."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache

from m2pt_cli.generation.partial_forward import partial_forward
from m2pt_cli.method.calls import cache_argument

# A row's block mask has (questions x tokens)^2 entries; past this many the mask costs more than a second row.
MAX_QUESTIONS_PER_ROW = 64


@dataclass(frozen=True)
class PrefixGroup:
    """One image set with the questions about it.

    Attributes:
        prefix: the token ids that all its questions share: template, image, and the first words they have in common.
        tails: per question the ids behind the prefix. A row of one question has one empty tail: its whole prompt is
            the prefix, so that nothing is computed twice.
        members: per tail the number of its question in the list that was planned.
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
        """Two rows with half of the questions each; none for a row of one question."""
        middle = len(self.members) // 2
        return [self._part(slice(0, middle)), self._part(slice(middle, None))] if middle else []

    def _part(self, part: slice) -> PrefixGroup:
        tails, members = self.tails[part], self.members[part]
        if len(members) == 1:
            return PrefixGroup(self.prefix + tails[0], ((),), members)
        return PrefixGroup(self.prefix, tails, members)


def padded_tokens(rows: Sequence[PrefixGroup]) -> int:
    """Tokens of a batch with its padding."""
    return len(rows) * max(row.num_tokens for row in rows)


def plan_groups(
    prompts: Sequence[Sequence[int]], keys: Sequence[Hashable], *, image_token_id: int
) -> list[PrefixGroup]:
    """Rows in order of each key's first question; the same questions give the same rows.

    Args:
        prompts: token ids of every question's whole prompt, image tokens in place.
        keys: what the image set of every question is known by; equal keys share a row.
        image_token_id: questions share a row only if all image tokens lie in what they have in common.
    """
    groups: dict[Hashable, list[int]] = {}
    for number, key in enumerate(keys):
        groups.setdefault(key, []).append(number)
    rows = []
    for members in groups.values():
        for start in range(0, len(members), MAX_QUESTIONS_PER_ROW):
            rows += _groups_of(members[start : start + MAX_QUESTIONS_PER_ROW], prompts, image_token_id)
    return rows


def _groups_of(members: list[int], prompts: Sequence[Sequence[int]], image_token_id: int) -> list[PrefixGroup]:
    shared = _common_length([prompts[member] for member in members])
    images_inside = all(image_token_id not in prompts[member][shared:] for member in members)
    if len(members) == 1 or shared == 0 or not images_inside:
        return [PrefixGroup(tuple(prompts[member]), ((),), (member,)) for member in members]
    prefix = tuple(prompts[members[0]][:shared])
    return [PrefixGroup(prefix, tuple(tuple(prompts[member][shared:]) for member in members), tuple(members))]


def _common_length(prompts: list[Sequence[int]]) -> int:
    """Length of the common start, short enough to leave every prompt at least one token of its own."""
    length = min(len(prompt) for prompt in prompts) - 1
    first = prompts[0]
    for prompt in prompts[1:]:
        length = next((i for i in range(length) if prompt[i] != first[i]), length)
    return max(length, 0)


def plan_batches(rows: Sequence[PrefixGroup], *, batch_tokens: int) -> Iterator[list[PrefixGroup]]:
    """Consecutive rows of one kind (single or shared) whose padded size fits ``batch_tokens``; at least one each."""
    batch: list[PrefixGroup] = []
    for row in rows:
        is_other_kind = bool(batch) and batch[0].is_single != row.is_single
        if batch and (is_other_kind or padded_tokens([*batch, row]) > batch_tokens):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@dataclass
class _Stream:
    """One question while it is being answered."""

    row: int
    segment: int
    limit: int
    position: int
    tokens: list[int] = field(default_factory=list)


@torch.inference_mode()
def answer_groups(
    model: torch.nn.Module,
    rows: Sequence[PrefixGroup],
    image_inputs: Mapping[str, torch.Tensor],
    *,
    limits: Sequence[Sequence[int]],
    eos_ids: frozenset[int],
    pad_id: int,
) -> list[list[list[int]]]:
    """New token ids per row and question, without the closing end-of-sequence token.

    Args:
        model: a LLaVA, bare or under PEFT, in eval mode.
        rows: rows of one kind, all single or all shared (see `plan_batches`).
        image_inputs: what the model takes beside ids (``pixel_values``, ``image_sizes``), all rows' images in order.
        limits: per row and question the most tokens to produce.
        eos_ids: ids that end an answer.
        pad_id: any valid id, put where nothing is.
    """
    state = _Prefilled.run(model, rows, image_inputs, pad_id)
    streams = [
        _Stream(row=r, segment=s, limit=limits[r][s], position=len(row.prefix) + len(tail))
        for r, row in enumerate(rows)
        for s, tail in enumerate(row.tails)
    ]
    following = state.first_tokens(rows) if rows[0].is_single else state.ask(rows)
    alive = streams
    while True:
        for stream, token in zip(alive, following, strict=True):
            if token in eos_ids:
                stream.limit = 0
            elif len(stream.tokens) < stream.limit:
                stream.tokens.append(token)
        alive = [stream for stream in alive if len(stream.tokens) < stream.limit]
        if not alive:
            break
        state.drop_finished(alive)
        following = state.step(alive)
    answers: list[list[list[int]]] = [[[] for _ in row.tails] for row in rows]
    by_place = {(stream.row, stream.segment): stream.tokens for stream in streams}
    for r, row in enumerate(rows):
        answers[r] = [by_place[r, s] for s in range(len(row.tails))]
    return answers


class _Prefilled:
    """The cache of a batch of rows, and which question every cached key belongs to."""

    def __init__(self, model: torch.nn.Module, cache: DynamicCache, mask: torch.Tensor, logits: torch.Tensor) -> None:
        self.model = model
        self.cache = cache
        self.prefix_mask = mask.bool()  # (rows, p): False where the prefix is padding
        self.lengths = mask.sum(-1)  # (rows,)
        self.logits = logits
        self.owner = torch.empty(mask.shape[0], 0, dtype=torch.long, device=mask.device)  # (rows, keys behind prefix)
        self.places = list(range(mask.shape[0]))  # cache row -> row of the batch
        self.pad_id = 0

    @classmethod
    def run(
        cls, model: torch.nn.Module, rows: Sequence[PrefixGroup], image_inputs: Mapping[str, torch.Tensor], pad_id: int
    ) -> _Prefilled:
        device = next(model.parameters()).device
        width = max(len(row.prefix) for row in rows)
        # Left padding puts every row's last prefix token in the last column, the one whose next token may be wanted.
        ids = torch.full((len(rows), width), pad_id)
        mask = torch.zeros_like(ids)
        for r, row in enumerate(rows):
            ids[r, width - len(row.prefix) :] = torch.tensor(row.prefix)
            mask[r, width - len(row.prefix) :] = 1
        ids, mask = ids.to(device), mask.to(device)
        cache = DynamicCache(config=model.config.get_text_config())  # type: ignore[union-attr, operator]
        with partial_forward(model, torch.tensor([width - 1])):
            out = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                use_cache=True,
                **{cache_argument(model): cache},
                # Behind a prefix that several questions share nothing follows yet.
                logits_to_keep=1 if rows[0].is_single else torch.empty(0, dtype=torch.long, device=device),
                **image_inputs,
            )
        state = cls(model, cache, mask, out.logits)
        state.pad_id = pad_id
        return state

    def first_tokens(self, rows: Sequence[PrefixGroup]) -> list[int]:
        """The first new token of every single row."""
        assert all(row.is_single for row in rows)
        return self.logits[:, -1].argmax(-1).tolist()

    def ask(self, rows: Sequence[PrefixGroup]) -> list[int]:
        """Run all tails, and return the first new token of every question, row by row."""
        width = max(sum(len(tail) for tail in row.tails) for row in rows)
        ids = torch.full((len(rows), width), self.pad_id)
        owner = torch.full_like(ids, -1)
        offset = torch.zeros_like(ids)
        ends: list[tuple[int, int]] = []
        for r, row in enumerate(rows):
            start = 0
            for s, tail in enumerate(row.tails):
                stop = start + len(tail)
                ids[r, start:stop] = torch.tensor(tail)
                owner[r, start:stop] = s
                offset[r, start:stop] = torch.arange(len(tail))
                ends.append((r, stop - 1))
                start = stop
        causal = torch.ones(width, width, dtype=torch.bool).tril()
        keep = torch.tensor(sorted({column for _, column in ends}))
        logits = self._forward(ids, owner, self.lengths[:, None].cpu() + offset, keep, causal)
        where = {column: i for i, column in enumerate(keep.tolist())}
        picked = torch.tensor([where[column] for _, column in ends], device=logits.device)
        return logits[torch.tensor([r for r, _ in ends], device=logits.device), picked].argmax(-1).tolist()

    def step(self, alive: Sequence[_Stream]) -> list[int]:
        """Feed every living question's last token; return their next ones."""
        column_of: list[int] = []
        used = [0] * len(self.places)
        cache_row = {place: i for i, place in enumerate(self.places)}
        for stream in alive:
            column_of.append(used[cache_row[stream.row]])
            used[cache_row[stream.row]] += 1
        width = max(used)
        ids = torch.full((len(self.places), width), self.pad_id)
        owner = torch.full_like(ids, -1)
        positions = torch.zeros_like(ids)
        for stream, column in zip(alive, column_of, strict=True):
            r = cache_row[stream.row]
            ids[r, column] = stream.tokens[-1]
            owner[r, column] = stream.segment
            positions[r, column] = stream.position + len(stream.tokens) - 1
        logits = self._forward(ids, owner, positions, None, torch.eye(width, dtype=torch.bool))
        rows = torch.tensor([cache_row[stream.row] for stream in alive], device=logits.device)
        return logits[rows, torch.tensor(column_of, device=logits.device)].argmax(-1).tolist()

    def drop_finished(self, alive: Sequence[_Stream]) -> None:
        """Let rows without a living question leave, once they are half of the batch: leaving copies the cache."""
        living = {stream.row for stream in alive}
        kept = [i for i, place in enumerate(self.places) if place in living]
        if 2 * len(kept) > len(self.places):
            return
        index = torch.tensor(kept, device=self.prefix_mask.device)
        self.cache.batch_select_indices(index)
        self.prefix_mask, self.lengths, self.owner = self.prefix_mask[index], self.lengths[index], self.owner[index]
        self.places = [self.places[i] for i in kept]

    def _forward(
        self,
        ids: torch.Tensor,
        owner: torch.Tensor,
        positions: torch.Tensor,
        keep: torch.Tensor | None,
        within: torch.Tensor,
    ) -> torch.Tensor:
        """Logits (rows, kept, vocabulary) of new tokens; ``within`` (n, n) says which of them may see which at all."""
        device, dtype = self.prefix_mask.device, self.logits.dtype
        ids, owner, positions, within = ids.to(device), owner.to(device), positions.to(device), within.to(device)
        rows, width = ids.shape
        same = owner[:, :, None] == torch.cat([self.owner, owner], 1)[:, None, :]  # (rows, n, keys behind prefix)
        same[:, :, self.owner.shape[1] :] &= within
        visible = torch.cat([self.prefix_mask[:, None, :].expand(rows, width, -1), same], 2)
        # Additive, the one form that every attention implementation of transformers takes.
        mask = torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, torch.finfo(dtype).min)
        self.owner = torch.cat([self.owner, owner], 1)
        with partial_forward(self.model, keep):
            out = self.model(
                input_ids=ids,
                attention_mask=mask[:, None],
                position_ids=positions,
                logits_to_keep=0 if keep is None else keep.to(device),
                use_cache=True,
                **{cache_argument(self.model): self.cache},
            )
        return out.logits
