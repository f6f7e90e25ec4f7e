"""Which questions are answered together: rows of one image with its questions, and batches of rows."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

# A row's block mask has (questions x tokens)^2 entries; past this many the mask costs more than a second row.
MAX_QUESTIONS_PER_ROW = 64


@dataclass(frozen=True)
class Row:
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

    def halves(self) -> list[Row]:
        """Two rows with half of the questions each; none for a row of one question."""
        middle = len(self.members) // 2
        return [self._part(slice(0, middle)), self._part(slice(middle, None))] if middle else []

    def _part(self, part: slice) -> Row:
        tails, members = self.tails[part], self.members[part]
        if len(members) == 1:
            return Row(self.prefix + tails[0], ((),), members)
        return Row(self.prefix, tails, members)


def padded_tokens(rows: Sequence[Row]) -> int:
    """Tokens of a batch with its padding."""
    return len(rows) * max(row.num_tokens for row in rows)


def plan_rows(prompts: Sequence[Sequence[int]], keys: Sequence[Hashable], *, image_token_id: int) -> list[Row]:
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
            rows += _rows_of(members[start : start + MAX_QUESTIONS_PER_ROW], prompts, image_token_id)
    return rows


def _rows_of(members: list[int], prompts: Sequence[Sequence[int]], image_token_id: int) -> list[Row]:
    shared = _common_length([prompts[member] for member in members])
    images_inside = all(image_token_id not in prompts[member][shared:] for member in members)
    if len(members) == 1 or shared == 0 or not images_inside:
        return [Row(tuple(prompts[member]), ((),), (member,)) for member in members]
    prefix = tuple(prompts[members[0]][:shared])
    return [Row(prefix, tuple(tuple(prompts[member][shared:]) for member in members), tuple(members))]


def _common_length(prompts: list[Sequence[int]]) -> int:
    """Length of the common start, short enough to leave every prompt at least one token of its own."""
    length = min(len(prompt) for prompt in prompts) - 1
    first = prompts[0]
    for prompt in prompts[1:]:
        length = next((i for i in range(length) if prompt[i] != first[i]), length)
    return max(length, 0)


def plan_batches(rows: Sequence[Row], *, batch_tokens: int) -> Iterator[list[Row]]:
    """Consecutive rows of one kind (single or shared) whose padded size fits ``batch_tokens``; at least one each."""
    batch: list[Row] = []
    for row in rows:
        is_other_kind = bool(batch) and batch[0].is_single != row.is_single
        if batch and (is_other_kind or padded_tokens([*batch, row]) > batch_tokens):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
