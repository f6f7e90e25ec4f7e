"""A tiny base and a file of questions about drawn images."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from fixtures.tiny_base import tiny_base
from PIL import Image


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 questions about 12 images of noise: three lengths, several questions per image."""
    folder = tmp_path_factory.mktemp("questions")
    lines = []
    for number in range(12):
        noise = random.Random(number).randbytes(16 * 14 * 3)
        Image.frombytes("RGB", (16, 14), noise).save(folder / f"{number}.png")
        for category, words in [("a", "Is it a dog"), ("b", "what is the image"), ("c", "which cat is left")]:
            question = words + " ?" * (number % 3)
            lines.append({"image": f"{number}.png", "question": question, "answer": "yes", "category": category})
    file = folder / "noise.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file
