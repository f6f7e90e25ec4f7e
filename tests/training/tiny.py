"""Ready-made samples for the tiny LLaVA and a collator: what a trainer needs, without a tokenizer or images on disk."""

from __future__ import annotations

import torch
from tiny_models import IMAGE_SIZE, IMAGE_TOKEN, PAD, PATCHES

ToySample = tuple[list[int], list[int], torch.Tensor]


def toy_samples(count: int, seed: int = 0) -> list[ToySample]:
    """Ids, labels and pixels; texts of several lengths, the last tokens supervised."""
    random = torch.Generator().manual_seed(seed)
    samples = []
    for _ in range(count):
        words = torch.randint(3, IMAGE_TOKEN, (int(torch.randint(4, 9, (1,), generator=random)),), generator=random)
        ids = [1, *[IMAGE_TOKEN] * PATCHES, *words.tolist(), 2]
        labels = [-100] * (len(ids) - 3) + ids[-3:]
        samples.append((ids, labels, torch.randn(3, IMAGE_SIZE, IMAGE_SIZE, generator=random)))
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
