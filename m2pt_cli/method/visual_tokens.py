"""The authors' visual tokens: what leaves the vision tower with ``visual_tokens="official"``."""

from __future__ import annotations

from typing import Any

import torch

from m2pt_cli.method.config import M2PTConfig


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
    if (prompts := attentions[run].active_prompts) is None:
        return output
    prompts = prompts.to(features.dtype)
    states = list(output.hidden_states)
    states[run] = torch.cat([prompts.expand(features.shape[0], -1, -1), features], dim=1)  # (images, k_v + 1 + n, d_v)
    output.hidden_states = tuple(states)
    return output
