"""The training loss: logits at supervised positions only, cross entropy in fp32.

About five of the several hundred positions of a visual instruction are supervised. The usual recipe computes logits
over the whole vocabulary at all of them; here the hidden states are cut to the supervised positions on their way into
the output head, inside the model's own forward, so that PEFT's and DistributedDataParallel's wrappers see an ordinary
call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from m2pt_cli.method.calls import bare

IGNORED = -100


def supervised_loss(model: nn.Module, batch: Mapping[str, Any], num_items: Tensor | int | None = None) -> Tensor:
    """Mean cross entropy over the supervised tokens.

    Args:
        model: a LLaVA, bare or inside PEFT's or DistributedDataParallel's wrapper.
        batch: the model's inputs and ``labels`` ``(batch, length)``, -100 where a token is not supervised; the labels
            are not shifted: the loss at position i is that of predicting label i + 1.
        num_items: the divisor; with gradient accumulation the supervised tokens of all micro-batches, so that the
            sum of their losses is the mean over the whole batch. Default: those of this batch.

    Returns:
        A scalar in fp32 that carries the gradient.
    """
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    # Without a mask transformers takes positions that begin anew for several texts in a row.
    if inputs.get("position_ids") is None and not needs_mask(model, inputs.get("attention_mask")):
        inputs.pop("attention_mask", None)
    targets = batch["labels"][:, 1:]
    supervised = targets != IGNORED  # (batch, length - 1)
    with _positions_at_head(model, supervised):
        logits = model(**inputs, use_cache=False).logits  # (supervised tokens, vocabulary)
    total = nn.functional.cross_entropy(logits.float(), targets[supervised].to(logits.device), reduction="sum")
    return total / (supervised.sum() if num_items is None else num_items)


def needs_mask(model: nn.Module, mask: Tensor | None) -> bool:
    """Whether attention has to be told of padding; without a mask the flash kernel can be used.

    A causal model never looks at padding on the right: it stands behind every supervised token. The decoders of LLaVA
    are causal, and `sdpa` alone knows so without a mask.

    Args:
        model: see `supervised_loss`.
        mask: ``(batch, length)``, 1 for real tokens.
    """
    if mask is None or mask.ndim != 2:
        return mask is not None
    text_config = bare(model).config.get_text_config()
    if str(text_config._attn_implementation).removeprefix("m2pt_") != "sdpa":
        return True
    return not bool((mask[:, 1:] <= mask[:, :-1]).all())


@contextmanager
def _positions_at_head(model: nn.Module, positions: Tensor) -> Iterator[None]:
    """Hand the output head the hidden states at ``positions`` ``(batch, length - 1)`` alone."""

    def select(head: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = arguments[0]  # (batch, length, width)
        return (hidden[:, :-1][positions.to(hidden.device)],)

    handle = output_head(model).register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def output_head(model: nn.Module) -> nn.Module:
    """The module that turns hidden states into logits, whatever wraps the model."""
    head = bare(model).get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise TypeError(f"{type(model).__name__} has no output head")
    return head


def is_finite(value: Tensor) -> bool:
    """Whether a scalar is neither NaN nor infinite."""
    return bool(torch.isfinite(value))
