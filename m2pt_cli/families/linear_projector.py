"""The projector of LLaVA v1: one linear layer, where LLaVA-1.5 has two.

transformers' class always builds two layers. This module replaces the projector while the model is built, so that the
model class, and with it the weight names in files, remain transformers' own. ``"mm_projector_type": "linear"`` in
``config.json`` (LLaVA's own key) identifies such a base.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import LlavaConfig
from transformers.models.llava import modeling_llava


def mark_linear(config: LlavaConfig) -> LlavaConfig:
    """Mark the config as that of a base with a linear projector, and return it."""
    config.mm_projector_type = "linear"
    return config


@contextmanager
def linear_projector() -> Iterator[None]:
    """Within the block, build every `LlavaForConditionalGeneration` with a linear projector.

    Example:
        >>> with linear_projector():
        ...     model = LlavaForConditionalGeneration(mark_linear(config))
    """
    two_layers = modeling_llava.LlavaMultiModalProjector
    modeling_llava.LlavaMultiModalProjector = _one_layer  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        modeling_llava.LlavaMultiModalProjector = two_layers  # type: ignore[misc]


def _one_layer(config: Any) -> nn.Linear:
    layers = config.vision_feature_layer
    width = config.vision_config.hidden_size * (1 if isinstance(layers, int) else len(layers))
    return nn.Linear(width, config.text_config.hidden_size, bias=config.multimodal_projector_bias)
