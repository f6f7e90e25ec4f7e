"""Forward pre-hooks that check the inputs of a model with prompts, and make positions for left padding.

They read public arguments of transformers' classes. Masks, positions and ids cover the tokens only, never the prompts.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

from peft import PeftModel
from torch import Tensor, nn
from transformers import Cache

from m2pt_cli.families.family import family_of
from m2pt_cli.method.architecture import longest_text
from m2pt_cli.method.config import M2PTConfig, MethodError
from m2pt_cli.method.prompts import PromptedAttention


def check_alone(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of the whole LLaVA: refuse other PEFT methods, which ``load_adapter`` can add later.

    Raises:
        MethodError: another PEFT method is in the same model.
    """
    others = {str(c.peft_type) for c in getattr(model, "peft_config", {}).values() if not isinstance(c, M2PTConfig)}
    if others:
        raise not_alone(others)


def not_alone(others: set[str]) -> MethodError:
    return MethodError(
        f"M²PT can't share a model with another PEFT method, and this one has {', '.join(sorted(others))}",
        "load the base again for each method",
    )


def check_images(llava: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of the LLaVA model without its head: check the image features and the number of image tokens.

    Raises:
        MethodError: feature layer or strategy differ from the config's, or the number of image tokens is not the one
            that the active adapter, or the base, needs.
    """
    pixels = kwargs.get("pixel_values")
    if pixels is None:  # decoding steps after the first
        return
    attention = _first(llava, "vision")
    if not isinstance(attention, PromptedAttention):
        return
    active = attention.active_config
    for name in ("vision_feature_layer", "vision_feature_select_strategy"):
        given, expected = kwargs.get(name), getattr(llava.config, name, None)
        if active is not None and given is not None and given != expected:
            raise MethodError(f"the adapter was made for {name}={expected!r}, not {given!r}")
    ids = kwargs.get("input_ids")
    official = [c for c in attention.m2pt_adapters.values() if c.extra_image_tokens]
    # Counted only if an adapter uses official tokens: reading ids synchronises with the device.
    if ids is None or not official:
        return
    vision = llava.config.vision_config
    per_image = (vision.image_size // vision.patch_size) ** 2
    expected_count = per_image + (active.extra_image_tokens if active is not None else 0)
    count = int((ids == llava.config.image_token_id).sum())
    if count != expected_count * pixels.shape[0]:
        raise MethodError(
            f"the prompt holds {count} image tokens for {pixels.shape[0]} image(s), but "
            + (
                f"without an adapter an image has {expected_count}"
                if active is None
                else f"with adapter {attention.active_name!r} an image has {expected_count}"
            ),
            "visual_tokens='official' puts k_v tokens more than patches into the prompt: build the ids again for the "
            "adapter that is active, or for the base when adapters are disabled",
        )


def check_text(llava: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook of the LLaVA model without its head: check mask and length; make positions for left padding.

    The prompts' positions end directly before position 0. Without prompts the position of the first token does not
    matter, so transformers counts left padding too; `generate` does not. For left padding without given positions, this
    hook therefore makes positions that count the tokens only.

    Raises:
        MethodError: the mask does not match the tokens, for example because it counts the prompts; a four-dimensional
            mask hides the first token and no positions are given; the text is so long that its rotary frequencies
            differ from those of the prompts.
    """
    attention = _first(llava, "text")
    if not isinstance(attention, PromptedAttention) or (prompts := attention.active_prompts) is None:
        return None
    tokens = kwargs.get("inputs_embeds")
    if tokens is None:
        tokens = args[0] if args else kwargs["input_ids"]
    # Found by type, because the argument's name differs between versions of transformers.
    given = next((value for value in kwargs.values() if isinstance(value, Cache)), None)
    new, past = tokens.shape[1], 0 if given is None else given.get_seq_length()
    mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
    _check_length(llava.config.get_text_config(), positions, past + new)
    if not isinstance(mask, Tensor):
        return None
    if mask.ndim == 2 and isinstance(past, int) and mask.shape[1] != past + new:
        raise MethodError(
            f"the attention mask has {mask.shape[1]} columns for {past + new} tokens, cached ones included",
            f"masks speak of the tokens alone; the adapter adds its {prompts.shape[0]} prompts",
        )
    if positions is not None or _sees_first(mask):
        return None
    if mask.ndim == 2:
        made_positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
        return args, {**kwargs, "position_ids": made_positions[:, -new:]}
    raise MethodError(
        "the attention mask hides the first token from the last one, and there are no position_ids: the prompts would "
        "not stand right in front of the text",
        "give position_ids that begin at 0 with each text",
    )


def _first(llava: Any, side: str) -> Any:
    """The attention of the first layer of the vision tower or of the language model, seen from the headless model."""
    stack = getattr(family_of(llava.config.model_type), side)
    return getattr(llava.get_submodule(stack.layers_path.removeprefix("model."))[0], stack.attention)


def _check_length(text_config: Any, positions: Tensor | None, length: Any) -> None:
    """Raise a MethodError if the text is so long that its rotary frequencies differ from those of the prompts' keys."""
    longest = longest_text(text_config)
    if longest is None:
        return
    if positions is not None:
        length = positions.max() + 1
    if int(length) > longest:
        raise MethodError(
            f"the rotary frequencies of this base change beyond {longest} tokens, and the text has {int(length)}: the "
            "prompts would stand at wrong positions",
            "shorten the text, or choose a base whose positions do not depend on its length",
        )


def _sees_first(mask: Tensor) -> bool:
    """Whether a mask with 2 or 4 dimensions lets the last token of every sample attend to the first one."""
    first = mask[:, 0] if mask.ndim == 2 else mask[:, :, -1, 0]
    return bool((first == 0).all() if first.is_floating_point() else first.all())


@cache
def _cache_argument(model_class: type) -> str:
    return "cache" if "cache" in inspect.signature(model_class.forward).parameters else "past_key_values"  # type: ignore[attr-defined]


def cache_argument(model: Any) -> str:
    """Return the name of the cache argument of a model or PeftModel; transformers 5.24 renamed it."""
    return _cache_argument(bare(model).__class__)


def bare(model: Any) -> Any:
    """Return the model inside PEFT's and DistributedDataParallel's wrappers."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    return model.get_base_model() if isinstance(model, PeftModel) else model
