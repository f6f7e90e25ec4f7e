"""The training loss: logits at supervised positions only, cross entropy in fp32.

Of the several hundred positions of a visual instruction about five are supervised. transformers computes logits over
the whole vocabulary at every position. Here a forward pre-hook on the output head selects the hidden states of the
supervised positions. The model is called as usual, so the wrappers of PEFT and DistributedDataParallel still work.
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
    """Compute the mean cross entropy over the supervised tokens.

    Args:
        model: a LLaVA, with or without the wrappers of PEFT and DistributedDataParallel.
        batch: the model's inputs and ``labels`` ``(batch, length)``, -100 where a token is not supervised; the labels
            are not shifted: the loss at position i is that of predicting label i + 1.
        num_items: the number to divide by: with gradient accumulation the supervised tokens of all micro-batches, so
            that the sum of the micro-batch losses is the mean over the whole batch. Default: those of this batch.

    Returns:
        A scalar in fp32 that carries the gradient.
    """
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    # Only without `position_ids`: without a mask, transformers takes positions that restart at 0 for packed sequences.
    if inputs.get("position_ids") is None and not needs_mask(model, inputs.get("attention_mask")):
        inputs.pop("attention_mask", None)
    targets = batch["labels"][:, 1:]
    supervised = targets != IGNORED  # (batch, length - 1)
    with _positions_at_head(model, supervised):
        logits = model(**inputs, use_cache=False).logits  # (supervised tokens, vocabulary)
    total = nn.functional.cross_entropy(logits.float(), targets[supervised].to(logits.device), reduction="sum")
    return total / (supervised.sum() if num_items is None else num_items)


def needs_mask(model: nn.Module, mask: Tensor | None) -> bool:
    """Return whether the model needs the padding mask; without a mask the flash kernel can be used.

    A causal model does not attend to padding on the right, because it follows every real token. LLaVA's decoders are
    causal. Of the attention implementations only `sdpa` stays causal without a mask.

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
    """Inside the block the output head computes only the positions marked in ``positions`` ``(batch, length - 1)``."""

    def select(head: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = arguments[0]  # (batch, length, width)
        return (hidden[:, :-1][positions.to(hidden.device)],)

    handle = output_head(model).register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def output_head(model: nn.Module) -> nn.Module:
    """Return the output head (hidden states to logits) of a model, with or without wrappers.

    Raises:
        TypeError: the model has no output head.
    """
    head = bare(model).get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise TypeError(f"{type(model).__name__} has no output head")
    return head


def is_finite(value: Tensor) -> bool:
    """Return whether a scalar is neither NaN nor infinite."""
    return bool(torch.isfinite(value))
