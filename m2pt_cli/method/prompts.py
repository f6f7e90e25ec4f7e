"""Prompts as extra key and value rows of every attention layer (paper, section 3.2 and 3.3).

Deep prompts overwrite the first k positions at the input of each layer, and what the layer makes of them is discarded.
So a prompt acts on real tokens only through the keys and values that this layer's attention computes from it. Here no
sequence is ever lengthened outside the attention, and the hidden states hold real tokens alone.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from m2pt_cli.method.config import M2PTConfig, MethodError


class M2PTLayer(nn.Module, BaseTunerLayer):
    """A wrapped module of the base, and what every adapter has here.

    ``m2pt_adapters`` holds the config of every adapter of the model, also of those without parameters in this layer.
    """

    other_param_names = ("m2pt_adapters",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.m2pt_adapters: dict[str, M2PTConfig] = {}
        self.merged_adapters: list[str] = []

    def add(self, adapter_name: str, config: M2PTConfig) -> None:
        """Make room for one more adapter."""
        self.m2pt_adapters[adapter_name] = config

    @property
    def active_name(self) -> str | None:
        """The adapter that acts, None while adapters are disabled.

        Raises:
            MethodError: this is a replica made by `torch.nn.DataParallel`, which loses prompts.
        """
        if "_is_replica" in self.__dict__:
            raise MethodError(
                "torch.nn.DataParallel loses the prompts of M²PT in its replicas",
                "start one process per GPU instead, for example with `torchrun`, or show one GPU alone",
            )
        if self.disable_adapters:
            return None
        return next((name for name in self.active_adapters if name in self.m2pt_adapters), None)

    @property
    def active_config(self) -> M2PTConfig | None:
        name = self.active_name
        return None if name is None else self.m2pt_adapters[name]

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        if not isinstance(adapter_names, str) and len(adapter_names) > 1:
            raise MethodError(f"one M²PT adapter can be active at a time, not {', '.join(adapter_names)}")
        super().set_adapter(adapter_names, inference_mode=inference_mode)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        refuse_merge()

    def unmerge(self) -> None:
        """Nothing was merged."""

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # PEFT would also cast to the base's dtype: the adapter stays in fp32.
        target = device or next(self.base_layer.parameters()).device
        for container in self.adapter_layer_names:
            values = getattr(self, container)
            if adapter_name in values:
                values[adapter_name] = values[adapter_name].to(target)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)


class PromptedAttention(M2PTLayer):
    """The attention of one layer and its prompts: one parameter ``[k, d]`` in fp32 for each adapter.

    Args:
        base_layer: the attention.
        norm: the layer norm in front of it, which the prompts pass as every token does.
        width: d, from the configuration.
    """

    adapter_layer_names = ("m2pt_prompts",)

    def __init__(self, base_layer: nn.Module, norm: nn.Module, width: int) -> None:
        super().__init__(base_layer)
        self.m2pt_prompts = nn.ParameterDict()
        self.width = width
        # In a tuple, so that it is not registered twice: the layer owns it.
        self._norm = (norm,)

    def add_prompts(self, adapter_name: str, config: M2PTConfig, count: int) -> None:
        """Add an adapter with ``count`` prompts here, and none if that is 0."""
        self.add(adapter_name, config)
        if count:
            device = next(self.base_layer.parameters()).device
            prompts = torch.empty(count, self.width, device=device, dtype=torch.float32)
            self.m2pt_prompts[adapter_name] = nn.Parameter(initialise(prompts, config.init))

    @property
    def active_prompts(self) -> nn.Parameter | None:
        """``[k, d]`` of the active adapter, None where it has none here."""
        name = self.active_name
        return self.m2pt_prompts[name] if name is not None and name in self.m2pt_prompts else None

    def normalised_prompts(self, dtype: torch.dtype) -> Tensor | None:
        """The active prompts as the attention sees them, ``(1, k, d)``."""
        prompts = self.active_prompts
        return None if prompts is None else self._norm[0](prompts.to(dtype)[None])


class VisualPrompts(PromptedAttention):
    """Attention of a vision layer.

    The prompts are appended to the sequence, where they have no position, and their rows are dropped again: order is
    nothing to an attention without a mask, and the class token keeps index 0. With ``output_attentions`` their columns
    (and rows) therefore come last.

    ``is_idle``: no image feature depends on this layer. It returns zeros, which leaves the hidden states as they are;
    its prompts are kept, counted and saved, as the paper does.
    """

    def __init__(self, base_layer: nn.Module, norm: nn.Module, width: int, is_idle: bool) -> None:
        super().__init__(base_layer, norm, width)
        self.is_idle = is_idle

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        if self.is_idle and self.active_name is not None:
            return torch.zeros_like(hidden_states), None
        rows = self.normalised_prompts(hidden_states.dtype)
        if rows is None:
            return self.base_layer(hidden_states, *args, **kwargs)
        batch, length, _ = hidden_states.shape
        extended = torch.cat([hidden_states, rows.expand(batch, -1, -1)], dim=1)  # (batch, n + k, d)
        output, weights = self.base_layer(extended, *args, **kwargs)
        return output[:, :length], weights


class IdleMLP(M2PTLayer):
    """The MLP of a vision layer that no image feature depends on: zeros while an adapter is active."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.base_layer(hidden_states) if self.active_name is None else torch.zeros_like(hidden_states)


class TextualPrompts(PromptedAttention):
    """Attention of a decoder layer.

    Without a cache the base attention is handed one that puts the prompts' keys and values in front. It holds no
    state, so that gradient checkpointing can compute the layer again. With a cache the rows are in it already. A text
    without a mask has its prompts run as tokens in front, queries included, and their rows dropped (all three: see
    `prefix.add_textual_prompts`). With ``output_attentions`` the prompts' columns come first.
    """

    def __init__(self, base_layer: nn.Module, norm: nn.Module, width: int, rotary: nn.Module) -> None:
        super().__init__(base_layer, norm, width)
        self._rotary = (rotary,)

    def rows(self, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """Keys and values of the active prompts at positions 0 .. k-1, each ``(1, heads, k, head width)``."""
        hidden = self.normalised_prompts(dtype)
        if hidden is None:
            return None
        attention: Any = self.base_layer
        count = hidden.shape[1]
        shape = (1, count, -1, attention.head_dim)
        keys = attention.k_proj(hidden).view(shape).transpose(1, 2)
        values = attention.v_proj(hidden).view(shape).transpose(1, 2)
        return apply_rotary_pos_emb(keys, keys, *self._rotation(hidden))[1], values

    def forward(
        self,
        hidden_states: Tensor,
        *args: Any,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if attention_mask is None and hidden_states.shape[1] > 1 and self.active_prompts is not None:
            return self._square(hidden_states, *args, past_key_values=past_key_values, **kwargs)
        if past_key_values is None and (rows := self.rows(hidden_states.dtype)) is not None:
            past_key_values = RowsInFront(*rows)
        return self.base_layer(
            hidden_states, *args, attention_mask=attention_mask, past_key_values=past_key_values, **kwargs
        )

    def _square(
        self,
        hidden_states: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        past_key_values: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Prompts and tokens as one causal text ``(batch, k + n, d)``, the tokens' rows of what comes out."""
        prompts = self.normalised_prompts(hidden_states.dtype)  # (1, k, d)
        assert prompts is not None
        count, batch = prompts.shape[1], hidden_states.shape[0]
        extended = torch.cat([prompts.expand(batch, -1, -1), hidden_states], dim=1)
        own = self._rotation(prompts)
        rotations = tuple(
            torch.cat([front.expand(given.shape[0], -1, -1), given], dim=1)
            for front, given in zip(own, position_embeddings, strict=True)
        )
        cache = None if past_key_values is None else RowsInCache(past_key_values, count)
        output, weights = self.base_layer(
            extended, position_embeddings=rotations, attention_mask=None, past_key_values=cache, **kwargs
        )
        return output[:, count:], weights

    def _rotation(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions 0 .. k-1, each ``(1, k, head width)``."""
        return self._rotary[0](prompts, position_ids=torch.arange(prompts.shape[1], device=prompts.device)[None])


class RowsInFront:
    """What an attention takes for its cache: puts fixed keys and values in front of the new ones, and keeps nothing."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys = keys
        self.values = values

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        batch = keys.shape[0]
        front = self.keys.expand(batch, -1, -1, -1), self.values.expand(batch, -1, -1, -1)
        return torch.cat([front[0], keys], dim=2), torch.cat([front[1], values], dim=2)


class RowsInCache:
    """What an attention takes for its cache: hands on all but the first ``count`` rows, which the cache holds."""

    def __init__(self, cache: Any, count: int) -> None:
        self.cache = cache
        self.count = count

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self.cache.update(keys[:, :, self.count :], values[:, :, self.count :], *args, **kwargs)


def initialise(prompts: Tensor, init: str) -> Tensor:
    """Fill ``[k, d]`` in place; ``xavier`` is uniform within sqrt(6 / ((k + 1) d)), the authors' on ``(1, k, d)``."""
    count, width = prompts.shape
    if init == "xavier":
        bound = math.sqrt(6 / ((count + 1) * width))
        return nn.init.uniform_(prompts, -bound, bound)
    if init == "normal":
        return nn.init.normal_(prompts, std=0.02)
    return nn.init.zeros_(prompts)


def refuse_merge() -> None:
    """Prompts are no change of weights.

    Raises:
        MethodError: always.
    """
    raise MethodError(
        "M²PT prompts can't be merged into the weights of the base",
        "keep the adapter, which costs k rows of the cache; `unload()` gives the bare base back",
    )
