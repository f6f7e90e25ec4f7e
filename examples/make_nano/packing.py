"""Pack many questions about one scene into one row; each attends to the scene and to itself only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from geometry import PATCHES
from torch import Tensor, nn
from torch.nn import functional
from words import ASSISTANT, BOS, EOS, IMAGE, USER, encode

IGNORED = -100
IMAGE_PREFIX = (BOS, USER, *([IMAGE] * PATCHES))
Segment = tuple[tuple[int, ...], tuple[int, ...]]  # given tokens, continuation
Row = tuple[tuple[int, ...], list[Segment]]  # shared prefix, segments


def stated(text: tuple[str, str], *, closed: bool = True) -> Segment:
    """Encode a fact: ``color of star: | red;``"""
    return encode(text[0]), encode(text[1]) + (encode(";") if closed else ())


def answered(text: tuple[str, str]) -> Segment:
    """Encode a turn of a conversation: ``... ASSISTANT: | red</s>``"""
    return (*encode(text[0]), ASSISTANT), (*encode(text[1]), EOS)


def described(text: str) -> tuple[int, ...]:
    """Encode a scene's description as the prefix of a row."""
    return (BOS, USER, *encode(text))


@dataclass(frozen=True)
class Batch:
    """Rows padded to one length; ``mask`` is ``(n, 1, length, length)``: 0 where attention is allowed, else -1e9."""

    ids: Tensor
    labels: Tensor
    positions: Tensor
    mask: Tensor


def pack(rows: Sequence[Row]) -> Batch:
    """Batch rows; every segment's positions start after the prefix."""
    built = []
    for prefix, segments in rows:
        ids, labels = list(prefix), [IGNORED] * len(prefix)
        owner, positions = [0] * len(prefix), list(range(len(prefix)))
        for number, (given, wanted) in enumerate(segments, start=1):
            ids += (*given, *wanted)
            labels += (*[IGNORED] * len(given), *wanted)
            size = len(given) + len(wanted)
            owner += [number] * size
            positions += range(len(prefix), len(prefix) + size)
        built.append((ids, labels, owner, positions))
    length = max(len(row[0]) for row in built)
    columns = []
    for column, filler in enumerate((0, IGNORED, -1, 0)):
        columns.append(torch.tensor([row[column] + [filler] * (length - len(row[column])) for row in built]))
    ids, labels, owner, positions = columns
    mine = (owner[:, None, :] == 0) | (owner[:, None, :] == owner[:, :, None])
    visible = torch.ones(length, length, dtype=torch.bool).tril() & mine
    mask = torch.zeros(visible.shape, dtype=torch.bfloat16).masked_fill(~visible, -1e9)
    return Batch(ids, labels, positions, mask[:, None])


def continue_rows(model: nn.Module, batch: Batch, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return logits and targets at supervised positions; ``features`` ``(n, 9, d)`` replace the image tokens."""
    embedded = model.get_input_embeddings()(batch.ids)
    if features is not None:
        embedded = torch.cat([embedded[:, :2], features, embedded[:, 2 + PATCHES :]], 1)
    states = model.model.language_model(
        inputs_embeds=embedded, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
    ).last_hidden_state[:, :-1]
    wanted = batch.labels[:, 1:]
    supervised = wanted != IGNORED
    return model.lm_head(states[supervised]), wanted[supervised]


def loss_of(model: nn.Module, batch: Batch, features: Tensor | None = None) -> tuple[Tensor, float]:
    """Return the cross entropy and the fraction of right words; products are in bf16, which is faster on many CPUs."""
    with torch.autocast("cpu", torch.bfloat16):
        logits, wanted = continue_rows(model, batch, features)
    return functional.cross_entropy(logits.float(), wanted), (logits.argmax(-1) == wanted).float().mean().item()


@torch.no_grad()
def exact_share(model: nn.Module, rows: Sequence[Row], features: Tensor | None = None) -> float:
    """Return the fraction of rows (of one segment each) whose continuation is entirely right."""
    batch = pack(rows)
    logits, wanted = continue_rows(model, batch, features)
    right = logits.argmax(-1) == wanted
    row = (batch.labels[:, 1:] != IGNORED).nonzero()[:, 0]
    wrong = torch.zeros(len(rows)).index_add_(0, row, (~right).float())
    return (wrong == 0).float().mean().item()
