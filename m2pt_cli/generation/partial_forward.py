"""Skip computation whose output is never read during generation.

Two parts of a model compute unused outputs: the vision layers above the one that image features are taken from, and the
last decoder layer. Of that layer all keys and values are needed, but queries and outputs only at positions that are
sampled from. The remaining outputs are computed by the model's own modules, with the adapters in them, so the answers
are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from m2pt_cli.method.architecture import layers_of, original, read_architecture


@contextmanager
def partial_forward(model: torch.nn.Module, columns: Tensor | None) -> Iterator[None]:
    """Context in which a forward pass skips vision layers above the feature layer, and unused output positions.

    Only the outputs at ``columns`` are valid.

    Args:
        model: the base, or a PeftModel of it.
        columns: positions ``(kept,)``, on the CPU, of the input tokens whose logits are read; None for all.
    """
    llava: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    with ExitStack() as stack:
        architecture = read_architecture(llava)
        family = architecture.family
        for layer in layers_of(llava, family.vision)[architecture.layers_run :]:
            stack.enter_context(_replaced(layer, lambda hidden, *args, **kwargs: hidden))
        if columns is not None:
            last = layers_of(llava, family.text)[-1]
            attention: Any = original(getattr(last, family.text.attention))
            for part in (attention.q_proj, attention.o_proj, last.mlp):
                stack.enter_context(_replaced(part, _at(columns, part.forward)))
        yield


@contextmanager
def _replaced(module: torch.nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Replace a module's ``forward``. The module is still called, as transformers' hooks collect hidden states."""
    own = module.__dict__.get("forward")  # set by accelerate's hooks
    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own  # type: ignore[method-assign]


def _at(columns: Tensor, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap ``forward`` so that it computes only ``columns`` of an input ``(batch, n, d)``; other outputs are zero."""

    highest = int(columns.max())

    def narrow(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if hidden.shape[1] <= highest:  # a separate call for the prompts, not for the tokens
            return forward(hidden, *args, **kwargs)
        positions = columns.to(hidden.device)
        outputs = forward(hidden[:, positions], *args, **kwargs)
        return outputs.new_zeros(*hidden.shape[:-1], outputs.shape[-1]).index_copy_(1, positions, outputs)

    return narrow
