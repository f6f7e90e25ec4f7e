"""A second, independent oracle: prompts are concatenated to the sequence and overwritten at the input of every layer.

It shares no code with the method and uses neither caches nor key/value rows: embeddings, layers and norms of a bare
base, one after the other, as the paper describes them. Slow, and right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def image_features(
    base: Any, pixels: Tensor, prompts: Sequence[Tensor], *, official: bool = False
) -> Tensor:  # (images, tokens, d_v * feature layers)
    """Features that reach the projector; ``prompts``: ``[k, d_v]`` for every vision layer, k = 0 allowed."""
    tower = base.model.vision_tower
    hidden = tower.embeddings(pixels)
    if hasattr(tower, "pre_layrnorm"):
        hidden = tower.pre_layrnorm(hidden)
    count = prompts[0].shape[0]
    hidden = torch.cat([_rows(prompts[0], hidden), hidden], 1)
    states = []
    for layer, own in zip(tower.encoder.layers, prompts, strict=True):
        hidden = torch.cat([_rows(own, hidden), hidden[:, count:]], 1)
        states.append(hidden)
        hidden = layer(hidden, None)
    states.append(hidden)
    first = 0 if base.config.vision_feature_select_strategy == "full" else 1
    wanted = base.config.vision_feature_layer
    indices = [wanted] if isinstance(wanted, int) else wanted
    return torch.cat([states[i][:, first if official else count + first :] for i in indices], -1)


def logits(
    base: Any,
    batch: dict[str, Tensor],
    visual: Sequence[Tensor],
    textual: Sequence[Tensor],
    project: Callable[[Tensor], Tensor],
    *,
    official: bool = False,
    head: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Logits ``(batch, n, vocabulary)`` of the real tokens."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    model = base.model.language_model
    hidden = model.embed_tokens(ids)
    if "pixel_values" in batch:
        features = project(image_features(base, batch["pixel_values"], visual, official=official))
        at = (ids == base.config.image_token_id)[..., None].expand_as(hidden)
        hidden = hidden.masked_scatter(at, features)
    count = textual[0].shape[0]
    hidden = torch.cat([_rows(textual[0], hidden), hidden], 1)
    # On either side of the text the padding is behind the prompts, masked, and takes no position.
    extended = torch.cat([mask.new_ones(mask.shape[0], count), mask], 1).bool()
    positions = (extended.long().cumsum(-1) - 1).clamp(min=0)
    length = hidden.shape[1]
    visible = torch.ones(length, length, dtype=torch.bool).tril() & extended[:, None, None]
    visible = visible | torch.eye(length, dtype=torch.bool)
    additive = torch.zeros(visible.shape, dtype=hidden.dtype).masked_fill(~visible, torch.finfo(hidden.dtype).min)
    rotary = model.rotary_emb(hidden, position_ids=positions)
    for layer, own in zip(model.layers, textual, strict=True):
        hidden = torch.cat([_rows(own, hidden), hidden[:, count:]], 1)
        hidden = layer(hidden, attention_mask=additive, position_embeddings=rotary, position_ids=positions)
    return (head or base.lm_head)(model.norm(hidden))[:, count:]


def loss(found: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of the labels that are not -100."""
    return torch.nn.functional.cross_entropy(found[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def greedy(step: Callable[[dict[str, Tensor]], Tensor], batch: dict[str, Tensor], tokens: int) -> Tensor:
    """New tokens ``(batch, tokens)``, everything computed again for each; for left-padded batches."""
    grown = dict(batch)
    for _ in range(tokens):
        new = step(grown)[:, -1].argmax(-1, keepdim=True)
        grown["input_ids"] = torch.cat([grown["input_ids"], new], 1)
        grown["attention_mask"] = torch.cat([grown["attention_mask"], torch.ones_like(new)], 1)
    return grown["input_ids"][:, batch["input_ids"].shape[1] :]


def _rows(prompts: Tensor, hidden: Tensor) -> Tensor:
    return prompts.to(hidden.dtype).expand(hidden.shape[0], -1, -1)
