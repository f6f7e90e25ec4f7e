"""LLaVA v1: one linear layer between the vision tower and the language model, where LLaVA-1.5 has two."""

from __future__ import annotations

from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration


class LinearLlava(LlavaForConditionalGeneration):
    """`LlavaForConditionalGeneration` with a linear projector; ``"mm_projector_type": "linear"`` in its config."""

    def __init__(self, config: LlavaConfig) -> None:
        config.mm_projector_type = "linear"
        super().__init__(config)
        layers = config.vision_feature_layer
        width = config.vision_config.hidden_size * (1 if isinstance(layers, int) else len(layers))
        self.model.multi_modal_projector = nn.Linear(
            width, config.text_config.hidden_size, bias=config.multimodal_projector_bias
        )
        self.post_init()
