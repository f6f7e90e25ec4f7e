"""The architecture of nano: a LLaVA of transformers' own classes with about 2.6 million parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from m2pt_cli.demo.render import CELL, IMAGE_SIZE

PATCHES = (IMAGE_SIZE // CELL) ** 2  # one token per cell of the grid
USED_VISION_LAYERS = 4  # of 5: like LLaVA, features are read before the last layer


def build_nano(words: int, *, pad: int, bos: int, eos: int, image: int) -> LlavaForConditionalGeneration:
    """Build an untrained nano with a vocabulary of ``words``; the four ids are those of the special tokens."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=USED_VISION_LAYERS + 1,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=CELL,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=words,
        hidden_size=160,
        intermediate_size=432,
        num_hidden_layers=5,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        tie_word_embeddings=True,
        pad_token_id=pad,
        bos_token_id=bos,
        eos_token_id=eos,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=PATCHES,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.set_attn_implementation("eager")  # used in training: with packed masks several times faster on a CPU
    return model


def image_features(tower: nn.Module, pixels: Tensor) -> Tensor:
    """Map ``(n, 3, 48, 48)`` to ``(n, 9, 128)``: the tower up to the layer that LLaVA reads, without CLS."""
    states = tower.pre_layrnorm(tower.embeddings(pixels))
    for layer in tower.encoder.layers[:USED_VISION_LAYERS]:
        states = layer(states, attention_mask=None)
    return states[:, 1:]


def to_pixels(images) -> Tensor:  # type: ignore[no-untyped-def]
    """Convert ``(n, 48, 48, 3)`` uint8 to ``(n, 3, 48, 48)`` in -1..1, as nano's image processor does."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous()
