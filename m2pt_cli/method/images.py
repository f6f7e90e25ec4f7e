"""Around the vision tower: the authors' visual tokens, and calls refused because image features would be wrong."""

from __future__ import annotations

from typing import Any

import torch

from m2pt_cli.method.config import M2PTConfig, MethodError
from m2pt_cli.method.prompts import PromptedAttention


def add_visual_tokens(tower: Any, args: tuple[Any, ...], output: Any) -> Any:
    """Forward hook of the vision tower: with ``visual_tokens="official"`` the features begin with the prompts.

    The authors overwrite the first positions at the input of every layer before they record it, and drop one token
    alone: the k_v prompts of the feature layer stand in front of the class token, and the first is dropped.
    """
    attentions = [layer.self_attn for layer in tower.encoder.layers]
    config: M2PTConfig | None = attentions[0].active_config
    if config is None or config.extra_image_tokens == 0 or output.hidden_states is None:
        return output
    run = sum(not attention.is_idle for attention in attentions)
    features = output.hidden_states[run]
    prompts = attentions[run].active_prompts.to(features.dtype)
    states = list(output.hidden_states)
    states[run] = torch.cat([prompts.expand(features.shape[0], -1, -1), features], dim=1)  # (images, k_v + 1 + n, d_v)
    output.hidden_states = tuple(states)
    return output


def check_images(llava: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of the LLaVA model without its head.

    Raises:
        MethodError: another feature layer than the config's, or image tokens that another adapter's prompt holds.
    """
    pixels = kwargs.get("pixel_values")
    if pixels is None:  # every token of an answer but the first
        return
    attention = llava.vision_tower.encoder.layers[0].self_attn
    if not isinstance(attention, PromptedAttention):
        return
    active = attention.active_config
    for name in ("vision_feature_layer", "vision_feature_select_strategy"):
        given, expected = kwargs.get(name), getattr(llava.config, name)
        if active is not None and given is not None and given != expected:
            raise MethodError(f"the adapter was made for {name}={expected!r}, not {given!r}")
    ids = kwargs.get("input_ids")
    official = [c for c in attention.m2pt_adapters.values() if c.extra_image_tokens]
    # Counted only where official tokens are about: looking at ids waits for the device.
    if ids is None or not official:
        return
    vision = llava.config.vision_config
    per_image = (vision.image_size // vision.patch_size) ** 2
    wanted = per_image + (active.extra_image_tokens if active is not None else 0)
    found = int((ids == llava.config.image_token_id).sum())
    if found != wanted * pixels.shape[0]:
        raise MethodError(
            f"the prompt holds {found} image tokens for {pixels.shape[0]} image(s), but "
            + (
                f"without an adapter an image has {wanted}"
                if active is None
                else f"with adapter {attention.active_name!r} an image has {wanted}"
            ),
            "visual_tokens='official' puts k_v tokens more than patches into the prompt: build the ids again for the "
            "adapter that is active, or for the base when adapters are disabled",
        )
