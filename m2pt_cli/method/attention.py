"""Adds the prompts' keys and values to attention (paper, sections 3.2 and 3.3).

At every layer the outputs at prompt positions are discarded, so a prompt affects tokens only as one more key and value
of that layer's attention. transformers looks up the attention function by name, calls it after the rotary embedding and
the cache update, and accepts new functions (`AttentionInterface`, `AttentionMaskInterface`). The functions registered
here prepend the prompts' keys and values and call the original function:

    softmax(Q [K_prompts; K]ᵀ · scaling + mask) [V_prompts; V]

The cache, the masks, the positions, `generate` and the other layers do not see the prompts.

Positions: rotary positions are relative. Prompt keys rotated to -k .. -1, before tokens at 0 .. n-1, give the same
scores as prompts at 0 .. k-1 before tokens at k .. k+n-1. So tokens keep the positions they have without prompts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from threading import get_ident
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from m2pt_cli.method.config import MethodError

# Implementations that tests compare with explicit concatenation. Others are refused: flash_attention_* reads its name
# from the config, flex_attention uses block masks.
IMPLEMENTATIONS = ("sdpa", "eager")
PREFIX = "m2pt_"
# Attributes of an attention module: its `PromptedCall` for each thread, and its `Watcher`.
CALLS, WATCHER = "_m2pt_calls", "_m2pt_watcher"
# Arguments of an attention function that change the scores in ways not supported here.
_SCORE_OPTIONS = ("softcap", "s_aux", "sinks", "position_bias")
# On these devices the memory-efficient kernel needs additive masks whose rows begin at multiples of this many elements.
_ALIGNED_DEVICES, _ALIGNMENT = ("cuda",), 8


class PromptStates(NamedTuple):
    """Keys and values of one layer's prompts, each ``(1, key heads, k, head width)``, keys rotated."""

    key: Tensor
    value: Tensor


class PromptedCall:
    """Data that a `prompts.PromptedAttention` and its attention function exchange during one call.

    A plain object: attributes of modules are slow to set, and every new token sets these in every layer.

    Attributes:
        states: returns the prompts' states for the given queries; None while the prompts themselves are the input.
        was_called: set by the function, so that the layer can check that it was called.
        recorded: the prompts' states, set by the function while the prompts are the input.
    """

    __slots__ = ("recorded", "states", "was_called")

    def __init__(self, states: Callable[[Tensor], PromptStates] | None = None) -> None:
        self.states = states
        self.was_called = False
        self.recorded: PromptStates | None = None


def this_thread() -> int:
    """Return the key of this thread's call in an attention module's ``__dict__[CALLS]``."""
    return 0 if torch.compiler.is_compiling() else get_ident()


# Called with the attention module and its attention weights ``(batch, heads, queries, k + keys)``, prompts first.
Watcher = Callable[[nn.Module, Tensor], None]


def use_prompted_attention(config: Any) -> None:
    """Make the attention modules of ``config`` call the function registered here; repeated calls change nothing.

    Raises:
        MethodError: the attention implementation is untested.
    """
    name = config._attn_implementation
    if name is not None and name.startswith(PREFIX):
        return
    if name not in IMPLEMENTATIONS:
        raise MethodError(
            f"M²PT was never tested on attn_implementation={name!r}, only on {' and '.join(IMPLEMENTATIONS)}",
            "load the base with attn_implementation='sdpa'",
        )
    config._attn_implementation = PREFIX + name


def restore_attention(config: Any) -> None:
    """Undo `use_prompted_attention`."""
    name = config._attn_implementation
    if name is not None and name.startswith(PREFIX):
        config._attn_implementation = name.removeprefix(PREFIX)


def _prompted(name: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """Return the attention function that prepends the prompts and calls the implementation ``name``."""

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        calls: dict[int, PromptedCall] | None = module.__dict__.get(CALLS)
        call = None if calls is None else calls.get(this_thread())
        states = None
        if call is not None:
            call.was_called = True
            if call.states is None:
                call.recorded = PromptStates(key, value)
                return torch.zeros_like(query).transpose(1, 2), None  # outputs at prompt positions are discarded
            states = call.states(query)
            _require_mask(attention_mask, key, states)
        watcher: Watcher | None = module.__dict__.get(WATCHER)
        if watcher is not None:
            watcher(module, attention_weights(module, query, key, attention_mask, states, **kwargs))
        if states is None:
            return _base_function(module, name)(module, query, key, value, attention_mask, **kwargs)
        is_implicitly_causal = attention_mask is None and query.shape[2] > 1  # the kernel applies its own causal mask
        if (
            name == "sdpa"
            and not is_implicitly_causal
            and _are_few_queries(query, key)
            and _scores_are_plain(attention_mask, kwargs)
        ):
            return few_tokens(query, key, value, attention_mask, states, kwargs.get("scaling")), None
        base = _base_function(module, name)
        return _with_prompts(base, module, query, key, value, attention_mask, states, name, kwargs)

    return attention


def _with_prompts(
    base: Callable[..., tuple[Tensor, Tensor | None]],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    states: PromptStates,
    name: str,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """Call ``base``, implementation ``name``, with the prompts prepended; output ``(batch, n, heads, head width)``."""
    batch, count = key.shape[0], states.key.shape[2]
    key = torch.cat([states.key.expand(batch, -1, -1, -1).to(key.dtype), key], 2)  # (batch, heads, k + keys, width)
    value = torch.cat([states.value.expand(batch, -1, -1, -1).to(value.dtype), value], 2)
    if mask is None and name == "sdpa" and query.shape[2] > 1 and _is_causal(module, kwargs):
        # Without a mask the kernel aligns its causal mask at the top left. Prepending one dummy query per prompt makes
        # that correct for tokens and prompts, so no explicit mask is needed and the flash kernel can be used.
        query = torch.cat([query[:, :, :1].expand(-1, -1, count, -1), query], 2)
        output, weights = base(module, query, key, value, None, **kwargs)
        return output[:, count:], weights
    return base(module, query, key, value, _prepend_columns(mask, query, count, name), **kwargs)


def few_tokens(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, states: PromptStates, scaling: float | None
) -> Tensor:
    """Return the attention output of a few new tokens that follow a cache, ``(batch, n, heads, head width)``.

    Scores of prompts and cache are computed separately and concatenated before the softmax, so the cache is not copied.

    Args:
        query: ``(batch, heads, n, head width)``.
        key, value: ``(batch, key heads, keys, head width)``.
        mask: ``(batch, 1, n, keys)``, boolean or additive; None if all keys are visible.
        scaling: factor of the scores; None for ``head width ** -0.5``.
    """
    batch, heads, new, width = query.shape
    key_heads, count, keys = key.shape[1], states.key.shape[2], key.shape[2]
    # One matrix per sample and key head; query heads that share a key head are stacked: (groups, shared, width).
    query = (query * (width**-0.5 if scaling is None else scaling)).reshape(batch * key_heads, -1, width)
    prompt_key, prompt_value = (tensor.expand(batch, -1, -1, -1).flatten(0, 1) for tensor in states)
    token_scores = torch.bmm(query, key.flatten(0, 1).mT)  # (groups, shared, keys)
    if mask is not None:
        token_scores = _masked(token_scores.view(batch, -1, new, keys), mask).view(batch * key_heads, -1, keys)
    weights = (
        torch.cat([torch.bmm(query, prompt_key.mT), token_scores], -1).softmax(-1, dtype=torch.float32).to(value.dtype)
    )
    output = torch.baddbmm(torch.bmm(weights[..., :count], prompt_value), weights[..., count:], value.flatten(0, 1))
    return output.view(batch, heads, new, -1).transpose(1, 2)


def _are_few_queries(query: Tensor, key: Tensor) -> bool:
    """Whether there are at most head_dim / 2 queries for each key head.

    Then `few_tokens`, which stores the scores, moves less memory than concatenating prompts to keys and values does.
    """
    return query.shape[2] * query.shape[1] // key.shape[1] <= query.shape[3] // 2


def attention_weights(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    states: PromptStates | None,
    *,
    scaling: float | None = None,
    **kwargs: Any,
) -> Tensor:
    """Return the attention weights of each query, ``(batch, heads, queries, k + keys)``; prompts first, rows sum to 1.

    Computed for watchers, because only the `eager` implementation returns its weights.

    Raises:
        MethodError: an option changes the scores in a way not supported here.
    """
    unknown = [option for option in _SCORE_OPTIONS if kwargs.get(option) is not None]
    if unknown:
        raise MethodError(f"the attention of {type(module).__name__} uses {unknown[0]}, which can't be watched")
    count = 0
    if states is not None:
        count = states.key.shape[2]
        key = torch.cat([states.key.expand(key.shape[0], -1, -1, -1).to(key.dtype), key], 2)
    new, keys = query.shape[2], key.shape[2] - count
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = (query @ key.mT) * (query.shape[3] ** -0.5 if scaling is None else scaling)
    if mask is not None:
        mask = nn.functional.pad(mask[..., :keys], (count, 0), value=True if mask.dtype == torch.bool else 0.0)
    elif new > 1 and _is_causal(module, kwargs):
        positions = torch.arange(-count, keys, device=query.device)
        mask = positions <= torch.arange(new, device=query.device)[:, None]
    if mask is not None:
        scores = _masked(scores, mask)
    return scores.softmax(-1, dtype=torch.float32)


def _base_function(module: nn.Module, name: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    # `eager` has no global function: every modelling file of transformers defines its own.
    own: Any = None
    if name == "eager":
        own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    found: Callable[..., tuple[Tensor, Tensor | None]] | None = ALL_ATTENTION_FUNCTIONS.get_interface(name, own)
    if found is None:
        raise MethodError(
            f"{type(module).__name__} has no eager attention of its own",
            "load the base with attn_implementation='sdpa'",
        )
    return found


def _is_causal(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    given = kwargs.get("is_causal")
    return bool(getattr(module, "is_causal", True) if given is None else given)


def _scores_are_plain(mask: Tensor | None, kwargs: dict[str, Any]) -> bool:
    if kwargs.get("dropout") or any(kwargs.get(option) is not None for option in _SCORE_OPTIONS):
        return False
    return mask is None or (mask.ndim == 4 and mask.shape[1] == 1)


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    """Apply a boolean mask (hidden scores become the lowest finite value) or an additive mask to the scores."""
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask


def _require_mask(mask: Tensor | None, key: Tensor, states: PromptStates) -> None:
    """Raise a MethodError if the mask is an integer mask, or its number of columns is not the number of keys."""
    if mask is None:
        return
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise MethodError(f"a four-dimensional attention mask must be of bool or float, not {mask.dtype}")
    if mask.shape[-1] != key.shape[2]:
        raise MethodError(
            f"the attention mask has {mask.shape[-1]} columns for {key.shape[2]} tokens, cached ones included",
            f"masks speak of the tokens alone; the adapter adds its {states.key.shape[2]} prompts",
        )


def _prepend_columns(mask: Tensor | None, query: Tensor, count: int, name: str) -> Tensor | None:
    """Prepend ``count`` visible columns to the mask, in the form that the implementation ``name`` takes."""
    if mask is None:
        return None
    is_bool = mask.dtype == torch.bool
    if not is_bool and mask.dtype != query.dtype:
        # The lowest value of a wide dtype is -inf in a narrow one, and gives NaN in fully masked rows (padding).
        limit = torch.finfo(query.dtype)
        mask = mask.clamp(limit.min, limit.max).to(query.dtype)
    mask = nn.functional.pad(mask, (count, 0), value=True if is_bool else 0.0)
    is_aligned = mask.device.type not in _ALIGNED_DEVICES
    if is_bool and (name == "eager" or not is_aligned):  # `eager` takes additive masks only
        mask = _masked(torch.zeros_like(mask, dtype=query.dtype), mask)
    keys = mask.shape[-1]
    if is_aligned or keys % _ALIGNMENT == 0:
        return mask
    return nn.functional.pad(mask, (0, -keys % _ALIGNMENT))[..., :keys]


for _name in IMPLEMENTATIONS:
    AttentionInterface.register(PREFIX + _name, _prompted(_name))
    AttentionMaskInterface.register(PREFIX + _name, ALL_MASK_ATTENTION_FUNCTIONS[_name])
