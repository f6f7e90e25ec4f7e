"""A tiny LLaVA, ready-made samples and a collator: what a trainer needs, without a tokenizer or images on disk."""

from __future__ import annotations

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

IMAGE_TOKEN, PAD, PATCHES = 63, 0, 4
ToySample = tuple[list[int], list[int], torch.Tensor]


def tiny_llava(seed: int = 0) -> LlavaForConditionalGeneration:
    """About 50,000 random parameters, 4 patches an image."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=8, patch_size=4
    )
    text = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64, pad_token_id=PAD, bos_token_id=1, eos_token_id=2, max_position_embeddings=128,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN)
    return LlavaForConditionalGeneration(config).requires_grad_(False).eval()


def toy_samples(count: int, seed: int = 0) -> list[ToySample]:
    """Ids, labels and pixels; texts of several lengths, the last tokens supervised."""
    random = torch.Generator().manual_seed(seed)
    samples = []
    for _ in range(count):
        words = torch.randint(3, IMAGE_TOKEN, (int(torch.randint(4, 9, (1,), generator=random)),), generator=random)
        ids = [1, *[IMAGE_TOKEN] * PATCHES, *words.tolist(), 2]
        labels = [-100] * (len(ids) - 3) + ids[-3:]
        samples.append((ids, labels, torch.randn(3, 8, 8, generator=random)))
    return samples


def collate(samples: list[ToySample]) -> dict[str, torch.Tensor]:
    """Right-padded batch."""
    longest = max(len(ids) for ids, _, _ in samples)
    rows = [(ids + [PAD] * (longest - len(ids)), labels + [-100] * (longest - len(ids))) for ids, labels, _ in samples]
    lengths = torch.tensor([[len(ids)] for ids, _, _ in samples])
    return {
        "input_ids": torch.tensor([ids for ids, _ in rows]),
        "labels": torch.tensor([labels for _, labels in rows]),
        "attention_mask": (torch.arange(longest)[None] < lengths).long(),
        "pixel_values": torch.stack([pixels for _, _, pixels in samples]),
    }
