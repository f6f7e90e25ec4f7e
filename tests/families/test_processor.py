"""Processors: PIL even if torchvision is installed, and as many image tokens as the base has features."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers.models.auto import image_processing_auto

from m2pt_cli.errors import UnavailableError
from m2pt_cli.families.processor import load_processor, set_visual_tokens
from m2pt_cli.models.catalog import read_geometry
from m2pt_cli.models.load import load_base

IMAGE = Image.linear_gradient("L").convert("RGB").resize((40, 26))


def encode(processor: Any) -> dict[str, torch.Tensor]:
    return dict(processor(text="USER : <image> what is the circle ASSISTANT :", images=IMAGE, return_tensors="pt"))


@pytest.mark.parametrize("options", [{}, {"projector": "linear"}, {"tower": "siglip"}, {"tiles": True}])
def test_ids_and_features_agree(bases: Callable[..., Path], options: dict[str, Any]) -> None:
    # The files say nothing of patches: the base's config decides.
    loaded = load_base(str(bases(**options)), device="cpu")
    batch = encode(loaded.processor)
    with torch.no_grad():
        logits = loaded.model(**batch).logits  # raises where the numbers differ
    assert torch.isfinite(logits).all()
    assert (batch["input_ids"] == loaded.model.config.image_token_id).sum() == (37 if "tiles" in options else 9)


def test_official_tokens(bases: Callable[..., Path], loaded: Any) -> None:
    processor = load_processor(bases(), read_geometry(bases()))
    image = loaded.model.config.image_token_id
    for visual_tokens, prompts, expected in (("official", 4, 13), ("official", 0, 9), ("patches", 4, 9)):
        set_visual_tokens(processor, loaded.model, visual_tokens, prompts)
        assert (encode(processor)["input_ids"] == image).sum() == expected
        assert read_geometry(bases()).image_tokens(visual_tokens, prompts) == expected


def test_images_go_through_pil(bases: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where torchvision is missing transformers falls back to PIL by itself: what is asked for counts.
    asked: list[Any] = []
    resolve = image_processing_auto._resolve_backend

    def spy(backend: str | None, *arguments: Any) -> str:
        asked.append(backend)
        return str(resolve(backend, *arguments))

    monkeypatch.setattr(image_processing_auto, "_resolve_backend", spy)
    for options in ({}, {"tower": "siglip"}, {"tiles": True}):
        folder = Path(shutil.copytree(bases(**options), tmp_path / "-".join(["x", *options])))
        file = folder / "processor_config.json"
        said = json.loads(file.read_text())
        # As saved where torchvision is installed.
        name = said["image_processor"]["image_processor_type"].removesuffix("Pil")
        said["image_processor"]["image_processor_type"] = name
        file.write_text(json.dumps(said))
        processor = load_processor(folder, read_geometry(folder))
        assert type(processor.image_processor).__name__ == f"{name}Pil"
    assert asked and set(asked) == {"pil"}


def test_files_of_older_releases(bases: Callable[..., Path], copied: Path) -> None:
    expected = encode(load_processor(bases(), read_geometry(bases())))
    said = json.loads((copied / "processor_config.json").read_text())
    old = said.pop("image_processor") | {"image_processor_type": "CLIPImageProcessor"}
    (copied / "preprocessor_config.json").write_text(json.dumps(old))
    (copied / "processor_config.json").write_text(json.dumps({"processor_class": "LlavaProcessor"}))
    processor = load_processor(copied, read_geometry(copied))
    assert type(processor.image_processor).__name__ == "CLIPImageProcessorPil"
    assert all(torch.equal(value, expected[name]) for name, value in encode(processor).items())


def test_a_damaged_processor(copied: Path) -> None:
    (copied / "tokenizer.json").write_text("{")
    with pytest.raises(UnavailableError, match="the processor in"):
        load_processor(copied, read_geometry(copied))
