"""Work that no answer depends on, left out while the engine runs a model.

Two layers compute more than is read of them: the vision layers above the one that image features are taken from, and
the last decoder layer, of which later tokens need every key and value, but of whose output only the columns count whose
next token is wanted. `generate` computes both in full. What is left is computed by the model's own modules, with the
adapters in them, so the answers are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from m2pt_cli.method.architecture import original, read_architecture


@contextmanager
def spared_work(model: torch.nn.Module, columns: Tensor | None) -> Iterator[None]:
    """Inside, ``model`` returns logits of ``columns`` alone and runs no vision layer above its feature layer.

    Args:
        model: a LLaVA, bare or under PEFT; every call inside needs a cache.
        columns: indices ``(kept,)`` of the given tokens, or None for all. Without a mask only the last may be kept.
    """
    llava: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    with ExitStack() as stack:
        for layer in llava.model.vision_tower.encoder.layers[read_architecture(llava).layers_run :]:
            stack.enter_context(_passing_on(layer))
        if columns is not None:
            last = llava.model.language_model.layers[-1]
            handle = last.register_forward_pre_hook(_queries_at(columns), with_kwargs=True)
            stack.callback(handle.remove)
        yield


@contextmanager
def _passing_on(layer: torch.nn.Module) -> Iterator[None]:
    """A layer that hands its input on; still called, because transformers collects the hidden states by its calls."""
    own = layer.__dict__.get("forward")  # accelerate's hooks put one there
    layer.forward = lambda hidden_states, *args, **kwargs: hidden_states  # type: ignore[method-assign]
    try:
        yield
    finally:
        del layer.forward
        if own is not None:
            layer.forward = own  # type: ignore[method-assign]


def _queries_at(columns: Tensor) -> Callable[..., Any]:
    """Forward pre-hook of a decoder layer: all keys and values go into the cache, the layer itself sees few columns."""

    def narrow(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden = args[0]  # (batch, n, d)
        attention: Any = original(layer.self_attn)
        cos, sin = kwargs["position_embeddings"]
        normalised = layer.input_layernorm(hidden)
        shape = (*hidden.shape[:-1], -1, attention.head_dim)
        keys = attention.k_proj(normalised).view(shape).transpose(1, 2)
        values = attention.v_proj(normalised).view(shape).transpose(1, 2)
        keys = apply_rotary_pos_emb(keys, keys, cos, sin)[1]
        cache, mask = kwargs["past_key_values"], kwargs["attention_mask"]
        kwargs["past_key_values"] = _Complete(*cache.update(keys, values, attention.layer_idx))
        kwargs["position_embeddings"] = cos[:, columns], sin[:, columns]
        kwargs["position_ids"] = kwargs["position_ids"][:, columns]
        kwargs["attention_mask"] = None if mask is None else mask[:, :, columns]
        return (hidden[:, columns], *args[1:]), kwargs

    return narrow


class _Complete:
    """What an attention takes for its cache: all keys and values are there, those it brings among them."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys = keys
        self.values = values

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self.keys, self.values
