"""Skips computation whose output is never read, while the engine runs a model.

Two parts of a model compute more than is read of them: the vision layers above the one that image features are taken
from, and the last decoder layer, of which all keys and values are needed, but queries and outputs only at positions
that are sampled from. What is read is computed by the model's own modules, with the adapters in them, so the answers
are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from m2pt_cli.method.architecture import original, read_architecture


@contextmanager
def partial_forward(model: torch.nn.Module, columns: Tensor | None) -> Iterator[None]:
    """Inside, only the outputs of ``columns`` are right, and no vision layer above the feature layer is run.

    Args:
        model: a LLaVA, bare or under PEFT.
        columns: indices ``(kept,)``, on the CPU, of the given tokens whose logits are read, or None for all.
    """
    llava: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    with ExitStack() as stack:
        for layer in llava.model.vision_tower.encoder.layers[read_architecture(llava).layers_run :]:
            stack.enter_context(_replaced(layer, lambda hidden, *args, **kwargs: hidden))
        if columns is not None:
            last = llava.model.language_model.layers[-1]
            attention: Any = original(last.self_attn)
            for part in (attention.q_proj, attention.o_proj, last.mlp):
                stack.enter_context(_replaced(part, _at(columns, part.forward)))
        yield


@contextmanager
def _replaced(module: torch.nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    """A module with another forward; still called, because transformers collects hidden states by the calls."""
    own = module.__dict__.get("forward")  # accelerate's hooks put one there
    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own  # type: ignore[method-assign]


def _at(columns: Tensor, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``forward`` of a few columns of ``(batch, n, d)``; zeros at the others."""

    highest = int(columns.max())

    def narrow(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if hidden.shape[1] <= highest:  # prompts, which are run alone
            return forward(hidden, *args, **kwargs)
        places = columns.to(hidden.device)
        few = forward(hidden[:, places], *args, **kwargs)
        return few.new_zeros(*hidden.shape[:-1], few.shape[-1]).index_copy_(1, places, few)

    return narrow
