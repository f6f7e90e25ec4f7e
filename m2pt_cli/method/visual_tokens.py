"""The authors' visual tokens: the output of the vision tower with ``visual_tokens="official"``."""

from __future__ import annotations

from typing import Any

import torch

from m2pt_cli.method.config import M2PTConfig


def add_visual_tokens(tower: Any, args: tuple[Any, ...], output: Any) -> Any:
    """Forward hook of the vision tower: with ``visual_tokens="official"`` prepend the prompts to the features.

    The authors overwrite the first positions of every layer's input before they record it, and drop only one token: the
    k_v prompts of the feature layer precede the class token, and the first prompt is dropped.
    """
    attentions = [layer.self_attn for layer in tower.encoder.layers]
    config: M2PTConfig | None = attentions[0].active_config
    if config is None or config.extra_image_tokens == 0 or output.hidden_states is None:
        return output
    feature_layer = sum(not attention.is_idle for attention in attentions)
    features = output.hidden_states[feature_layer]
    if (prompts := attentions[feature_layer].active_prompts) is None:
        return output
    prompts = prompts.to(features.dtype)
    states = list(output.hidden_states)
    states[feature_layer] = torch.cat(
        [prompts.expand(features.shape[0], -1, -1), features], dim=1
    )  # (images, k_v + 1 + n, d_v)
    output.hidden_states = tuple(states)
    return output
