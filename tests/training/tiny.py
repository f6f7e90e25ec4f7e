"""Ready-made samples for the tiny LLaVA and a collator: what a trainer needs, without a tokenizer or images on disk."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from PIL import Image
from tiny_models import IMAGE_SIZE, IMAGE_TOKEN, PAD, PATCHES

ToySample = tuple[list[int], list[int], torch.Tensor]


def toy_samples(count: int, seed: int = 0) -> list[ToySample]:
    """Ids, labels and pixels; texts of several lengths, the last tokens supervised."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for _ in range(count):
        words = torch.randint(
            3, IMAGE_TOKEN, (int(torch.randint(4, 9, (1,), generator=generator)),), generator=generator
        )
        ids = [1, *[IMAGE_TOKEN] * PATCHES, *words.tolist(), 2]
        labels = [-100] * (len(ids) - 3) + ids[-3:]
        samples.append((ids, labels, torch.randn(3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)))
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


def write_data(folder: Path, *, count: int = 12) -> Path:
    """A LLaVA JSON file and its images."""
    folder.mkdir()
    choose = random.Random(0)
    rows = []
    for number in range(count):
        Image.new("RGB", (20, 14), (20 * number, 100, 50)).save(folder / f"{number}.png")
        question = "<image>\nis it a dog ?" + " what" * choose.randrange(5)
        answer = choose.choice(["yes", "no"])
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        rows.append({"id": f"s{number}", "image": f"{number}.png", "conversations": turns})
    (folder / "data.json").write_text(json.dumps(rows))
    return folder / "data.json"
