"""The model sizes of the benchmarks, and random models of them.

Random weights are created on the device: they do not change the cost of a step, and nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from m2pt_cli.families.geometry import Geometry
from m2pt_cli.models.catalog import entry_of

BATCH = 16
TEXT_TOKENS = 60
_7B = entry_of("llava-1.5-7b").geometry
_SMALL = replace(
    _7B,
    vision=replace(
        _7B.vision, hidden_size=256, intermediate_size=1024, num_layers=6, num_heads=4, image_size=112
    ),
    text=replace(
        _7B.text, vocab_size=32000, hidden_size=512, intermediate_size=1376, num_layers=8, num_heads=8,
        num_key_value_heads=8, head_dim=64,
    ),
)  # fmt: skip

GEOMETRIES: dict[str, Geometry] = {
    "small": _SMALL,
    "answering": replace(_SMALL, vision=replace(_SMALL.vision, image_size=336)),
    "llava-v1-7b": entry_of("llava-v1-7b").geometry,
    "llava-1.5-7b": _7B,
}


def batch_of(name: str) -> int:
    """Rows of a training batch: the paper's 16, and 4 where a CPU is to take part."""
    return BATCH if name.endswith("7b") else 4


def build(geometry: Geometry, device: torch.device, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    """A frozen LLaVA with random weights, made on the device."""
    vision = CLIPVisionConfig(
        hidden_size=geometry.vision.hidden_size, num_hidden_layers=geometry.vision.num_layers,
        num_attention_heads=geometry.vision.num_heads, image_size=geometry.vision.image_size,
        patch_size=geometry.vision.patch_size, intermediate_size=geometry.vision.intermediate_size,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=geometry.text.hidden_size, num_hidden_layers=geometry.text.num_layers,
        num_attention_heads=geometry.text.num_heads, num_key_value_heads=geometry.text.num_key_value_heads,
        intermediate_size=geometry.text.intermediate_size, vocab_size=geometry.text.vocab_size,
        max_position_embeddings=4096,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=geometry.text.vocab_size - 1)
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlavaForConditionalGeneration(config)
            if geometry.projector == "linear":
                model.model.multi_modal_projector = torch.nn.Linear(vision.hidden_size, text.hidden_size)
    finally:
        torch.set_default_dtype(default)
    model.generation_config.eos_token_id = None
    return model.requires_grad_(False).eval()
