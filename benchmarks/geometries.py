"""The sizes that the benchmarks run at, and random models of them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

# name: (vision width, layers, heads, image, patch; text width, layers, heads, MLP, vocabulary; batch, text tokens)
GEOMETRIES: dict[str, dict[str, Any]] = {
    "small": {
        "vision": (256, 6, 4, 112, 14, 1024), "text": (512, 8, 8, 1376, 32000), "batch": 4, "text_tokens": 60,
        "projector": "mlp",
    },
    "answering": {
        "vision": (256, 6, 4, 336, 14, 1024), "text": (512, 8, 8, 1376, 32000), "batch": 4, "text_tokens": 60,
        "projector": "mlp",
    },
    "llava-v1-7b": {
        "vision": (1024, 24, 16, 224, 14, 4096), "text": (4096, 32, 32, 11008, 32000), "batch": 16, "text_tokens": 60,
        "projector": "linear",
    },
    "llava-1.5-7b": {
        "vision": (1024, 24, 16, 336, 14, 4096), "text": (4096, 32, 32, 11008, 32064), "batch": 16, "text_tokens": 60,
        "projector": "mlp",
    },
}  # fmt: skip


def build(geometry: dict[str, Any], device: torch.device, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    """A frozen LLaVA with random weights, made on the device."""
    width, layers, heads, image, patch, mlp = geometry["vision"]
    vision = CLIPVisionConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, image_size=image, patch_size=patch,
        intermediate_size=mlp,
    )  # fmt: skip
    width, layers, heads, mlp, vocabulary = geometry["text"]
    text = LlamaConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
        intermediate_size=mlp, vocab_size=vocabulary, max_position_embeddings=4096,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=vocabulary - 1)
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlavaForConditionalGeneration(config)
            if geometry["projector"] == "linear":
                model.model.multi_modal_projector = torch.nn.Linear(vision.hidden_size, text.hidden_size)
    finally:
        torch.set_default_dtype(default)
    return model.requires_grad_(False).eval()
