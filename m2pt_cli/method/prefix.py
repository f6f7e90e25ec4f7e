"""Textual prompts in front of the language model: positions, masks and the KV cache.

Everything outside the language model speaks of real tokens: attention masks, position ids, the length a cache reports.
`add_textual_prompts`, run before the language model, adds the k prompts to all three, which occupy positions 0 .. k-1
and are visible to every token. Only a four-dimensional mask may include them already; its number of keys tells:
``past + n`` is extended, ``past + n + k`` is taken as it is, and the position ids given with it are then taken as they
are too.

In generation the prompts enter once, as the first rows of the cache; later steps find them there at no extra cost.

A text is run in one of two forms, equal in their numbers. With an explicit mask each attention gets k keys more than
queries. On `FLASH_DEVICES` a text that hides nothing but the future, and has nothing but the prompts in front of it,
gets no mask at all: each attention then runs the prompts as queries too and drops what comes out. With as many keys as
queries the flash kernel, which takes no mask, can be used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from m2pt_cli.method.architecture import attention_window
from m2pt_cli.method.config import MethodError
from m2pt_cli.method.prompts import TextualPrompts

# Attention implementations whose masks are known here.
IMPLEMENTATIONS = ("sdpa", "eager")
# Kinds of device with a fast attention kernel that takes no mask, and a slower one whose masks are numbers.
FLASH_DEVICES = ("cuda",)
# The slower kernel copies a mask, in every layer, whose rows do not begin at multiples of this many numbers.
MASK_ALIGNMENT = 8


class PromptedCache(DynamicCache):
    """A `DynamicCache` whose first rows are an adapter's textual prompts; its length is that of the real tokens.

    So `generate`, which cuts the given tokens by the cache's length, loses none.

    Attributes:
        adapter: the adapter's name.
        num_prompts: its k; 0 before the prompts are in.
        is_square: whether the present call runs without a mask (see the top of this file).
    """

    adapter = ""
    num_prompts = 0
    is_square = False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return super().get_seq_length(layer_idx) - self.num_prompts

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return super().get_seq_length(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        # With as many keys as queries transformers makes no mask of its own.
        return (query_length, 0) if self.is_square else super().get_mask_sizes(query_length, layer_idx)

    def reset(self) -> None:
        super().reset()
        self.num_prompts = 0


def real_positions(mask: Tensor) -> Tensor:
    """Position ids of real tokens ``(batch, n)`` from a mask of the same shape, on whichever side the padding is."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


@torch.no_grad()
def prefix_cache(language_model: Any, batch_size: int, dtype: torch.dtype) -> PromptedCache:
    """A cache that holds the active adapter's prompts and no token yet, for ``batch_size`` rows; without gradients.

    Give it to the model, or to `generate`, with masks and positions of the real tokens alone.

    Raises:
        MethodError: no adapter with textual prompts is active.
    """
    cache = DynamicCache(config=language_model.config)
    if active_adapter(language_model)[1] == 0:
        raise MethodError("there is no cache of textual prompts: no adapter with textual prompts is active")
    return _seed(language_model, cache, batch_size, dtype)


def active_adapter(language_model: Any) -> tuple[str | None, int]:
    """Name of the active adapter and its number of textual prompts; ``(None, 0)`` for the bare base."""
    attention = language_model.layers[0].self_attn
    if not isinstance(attention, TextualPrompts) or (config := attention.active_config) is None:
        return None, 0
    return attention.active_name, config.num_textual_prompts


def add_textual_prompts(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook of the language model; see the top of this file.

    Raises:
        MethodError: a cache or a mask with which prompts would be lost, hidden or counted twice.
    """
    name, prompts = active_adapter(model)
    cache = kwargs.get("past_key_values")
    if isinstance(cache, PromptedCache) and cache.num_prompts and (cache.adapter, cache.num_prompts) != (name, prompts):
        raise MethodError(
            f"the cache begins with the prompts of adapter {cache.adapter!r}, but "
            + ("no adapter is active" if name is None else f"{name!r} is active"),
            "use a cache with the adapter it was filled by",
        )
    if prompts == 0:
        return None
    tokens = kwargs.get("inputs_embeds")
    if tokens is None:
        tokens = args[0] if args else kwargs["input_ids"]
    batch, new = tokens.shape[:2]
    dtype = tokens.dtype if tokens.is_floating_point() else model.embed_tokens.weight.dtype

    if is_checkpointing(model):
        # Checkpointed layers are run without a cache: each puts its prompts in front by itself.
        if cache is not None or kwargs.get("use_cache"):
            raise MethodError(
                "gradient checkpointing runs without a cache, and would leave it empty",
                "call `eval()` first, or pass use_cache=False",
            )
        kwargs["use_cache"] = False
        if kwargs.get("inputs_embeds") is not None and not tokens.requires_grad and torch.is_grad_enabled():
            # A reentrant checkpoint passes gradients to the prompts inside only if its input has one. transformers sees
            # to that for tokens that it embeds itself.
            kwargs["inputs_embeds"] = tokens.detach().requires_grad_(True)
    else:
        use_cache = kwargs.get("use_cache")
        if cache is None and (model.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache(config=model.config)
        if cache is not None:
            cache = kwargs["past_key_values"] = _prompted(model, cache, batch, dtype)
    past = 0 if cache is None else cache.get_seq_length()

    window = attention_window(model.config)
    if window is not None and prompts + past + new > window:
        raise MethodError(
            f"{type(model).__name__} attends to the last {window} tokens alone, and {prompts} prompts and {past + new} "
            "tokens are more: the prompts would drop out of sight",
            "shorten the text, or load the base with `sliding_window=None` in its text config",
        )
    mask = kwargs.get("attention_mask")
    positions = kwargs.get("position_ids")
    counts_prompts = includes_prompts(mask, past + new, prompts)
    # Without a cache transformers reads positions that are given for several texts in one row.
    square = past == 0 and (cache is not None or positions is None) and runs_square(model, mask, new, tokens.device)
    if positions is None:
        # Padding on the right may have any position: no real token sees it. Counting on, the row is one text.
        if mask is not None and mask.ndim == 2 and not square:
            positions = real_positions(mask)[:, -new:]
        else:
            positions = torch.arange(past, past + new, device=tokens.device)[None]
        positions = positions + prompts
    elif not counts_prompts:
        if mask is None and cache is not None and past == 0 and bool((positions[:, 0] == prompts).all()):
            # `generate` drops a mask without padding, but not the positions it made of it.
            raise MethodError(
                f"the position ids begin at {prompts}, as if the attention mask had counted the {prompts} prompts",
                "give `generate` the mask of the real tokens alone; the adapter adds its prompts",
            )
        positions = positions + prompts
    if cache is not None:
        cache.is_square = square
    kwargs["position_ids"] = positions
    kwargs["attention_mask"] = (
        None
        if square
        else attention_form(
            model, mask, batch=batch, new=new, past=past, prompts=prompts, dtype=dtype, device=tokens.device
        )
    )
    return args, kwargs


def runs_square(model: Any, mask: Tensor | None, new: int, device: torch.device) -> bool:
    """Whether a text with nothing but the prompts in front can do without a mask, and should on this device.

    Args:
        model: the language model.
        mask: of the real tokens. Padding on the right needs none, since a causal attention never looks there.
        new: tokens of the text.
    """
    if device.type not in FLASH_DEVICES or model.config._attn_implementation != "sdpa" or new == 1:
        return False
    if torch.compiler.is_compiling():
        return False  # transformers then makes a causal mask of the tokens alone where it would make none
    return mask is None or (mask.ndim == 2 and bool((mask[:, 1:] <= mask[:, :-1]).all()))


def includes_prompts(mask: Tensor | None, real_keys: int, prompts: int) -> bool:
    """Whether a mask counts the prompts already, which only a four-dimensional one may.

    Raises:
        MethodError: its number of keys is neither that of the real tokens nor that plus the prompts.
    """
    if mask is None:
        return False
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        raise MethodError(f"the attention mask must have 2 or 4 dimensions, not {getattr(mask, 'ndim', type(mask))}")
    keys = mask.shape[-1]
    if keys == real_keys or (mask.ndim == 4 and keys == real_keys + prompts):
        return keys != real_keys
    raise MethodError(
        f"the attention mask has {keys} columns for {real_keys} tokens, cached ones included",
        f"masks speak of the real tokens alone; the adapter adds its {prompts} prompts",
    )


def attention_form(
    model: Any,
    mask: Tensor | None,
    *,
    batch: int,
    new: int,
    past: int,
    prompts: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor | None:
    """The mask that the decoder layers get, ``(batch, 1, new, prompts + past + new)``, or None where nothing is hidden.

    Args:
        model: the language model.
        mask: of the real tokens ``(batch, past + new)``, or with four dimensions (see the top of this file), or None.
        batch, new, past, prompts: rows, tokens of this call, real tokens in the cache, prompts.
        dtype: of the hidden states.

    Raises:
        MethodError: an attention implementation whose masks are not known here, or a mask of whole numbers.
    """
    implementation = model.config._attn_implementation
    if implementation not in IMPLEMENTATIONS:
        raise MethodError(
            f"M²PT was never tested on attn_implementation={implementation!r}, only on {' and '.join(IMPLEMENTATIONS)}",
            "load the base with attn_implementation='sdpa'",
        )
    if new == 1 and (mask is None or (mask.ndim == 2 and bool(mask.all()))):
        return None  # a token that sees everything
    if mask is not None and mask.ndim == 4:
        if mask.is_floating_point():
            # The lowest number of a wide type is -inf in a narrow one, and NaN in rows that see nothing (padding).
            limit = torch.finfo(dtype)
            visible = mask.clamp(limit.min, limit.max).to(dtype)
            return _aligned(_with_front(visible, prompts, past + new, 0.0))
        if mask.dtype != torch.bool:
            raise MethodError(f"a four-dimensional attention mask must be of bool or float, not {mask.dtype}")
        visible = _with_front(mask, prompts, past + new, True)
    else:
        keys = torch.arange(prompts + past + new, device=device)
        visible = (keys <= keys[-new:, None]).expand(batch, 1, -1, -1)  # causal: (batch, 1, new, keys)
        if mask is not None:
            real = mask.to(device=device, dtype=torch.bool)[:, None, None]
            visible = visible & _with_front(real, prompts, past + new, True)
    if implementation == "sdpa" and device.type not in FLASH_DEVICES:
        return visible
    # Numbers, once: from truth values the kernel of a `FLASH_DEVICES` would make them anew in every layer.
    return _aligned(
        torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, torch.finfo(dtype).min)
    )


def is_checkpointing(language_model: Any) -> bool:
    """Whether layers run under gradient checkpointing now: all of them, or every n-th."""
    return language_model.training and any(layer.gradient_checkpointing for layer in language_model.layers)


def _aligned(mask: Tensor) -> Tensor:
    """The mask, on `FLASH_DEVICES` in memory whose rows begin where the attention kernel wants them."""
    keys = mask.shape[-1]
    if mask.device.type not in FLASH_DEVICES or keys % MASK_ALIGNMENT == 0:
        return mask
    return nn.functional.pad(mask, (0, -keys % MASK_ALIGNMENT))[..., :keys]


def _with_front(mask: Tensor, prompts: int, real_keys: int, visible: bool | float) -> Tensor:
    if mask.shape[-1] != real_keys:
        return mask
    return nn.functional.pad(mask, (prompts, 0), value=visible)


def _prompted(model: Any, cache: Cache, batch: int, dtype: torch.dtype) -> PromptedCache:
    """The cache with the prompts in front: seeded if it is empty, refused if something else stands there."""
    if type(cache) not in (DynamicCache, PromptedCache):
        raise MethodError(
            f"M²PT puts its prompts in front of a growing cache, and a {type(cache).__name__} is none",
            "leave `cache_implementation` and `past_key_values` at their defaults",
        )
    if isinstance(cache, PromptedCache) and cache.num_prompts:
        return cache
    if cache.get_seq_length() > 0:
        raise MethodError(
            f"the cache holds {cache.get_seq_length()} tokens that never saw the prompts of the active adapter",
            "begin with an empty cache, or with one that the model filled while this adapter was active",
        )
    return _seed(model, cache, batch, dtype)


def _seed(model: Any, cache: Cache, batch: int, dtype: torch.dtype) -> PromptedCache:
    # In place: the caller goes on with the cache it gave.
    cache.__class__ = PromptedCache
    assert isinstance(cache, PromptedCache)
    for index, layer in enumerate(model.layers):
        keys, values = layer.self_attn.rows(dtype)
        cache.update(keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1), index)
    name, cache.num_prompts = active_adapter(model)
    assert name is not None
    cache.adapter = name
    return cache
