"""Tiny bases on disk, with a tokenizer and a processor, and adapters for them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def write_base(
    folder: Path, *, projector: str = "mlp", tower: str = "clip", tiles: bool = False, seed: int = 0
) -> Path:
    """Write a complete base of a few ten thousand parameters into ``folder``; a LLaVA-NeXT with ``tiles``."""
    from tiny_models import IMAGE_SIZE, IMAGE_TOKEN, tiny_llava, tiny_llava_next
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessorPil,
        LlavaNextImageProcessorPil,
        LlavaNextProcessor,
        LlavaProcessor,
        PreTrainedTokenizerFast,
        SiglipImageProcessorPil,
    )

    from m2pt_cli.bases.linear_projector import mark_linear

    words = ["<pad>", "<s>", "</s>", "<unk>", *["USER", "ASSISTANT", ":", "what", "is", "the", "circle", "red"]]
    words += [f"w{i}" for i in range(len(words), IMAGE_TOKEN)] + ["<image>"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=["<image>"], **special)
    square = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    model: Any
    processor: Any
    if tiles:
        model = tiny_llava_next(seed=seed)
        images: Any = LlavaNextImageProcessorPil(
            size={"shortest_edge": IMAGE_SIZE}, crop_size=square, image_grid_pinpoints=model.config.image_grid_pinpoints
        )
        processor = LlavaNextProcessor(images, fast)
    else:
        model = tiny_llava(projector=projector, tower=tower, seed=seed)
        if projector == "linear":
            mark_linear(model.config)
        crop = CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=square)
        processor = LlavaProcessor(crop if tower == "clip" else SiglipImageProcessorPil(size=square), fast)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_adapter(
    folder: Path, base: Any, *, method: str = "m2pt", fingerprint: str | None = None, **options: Any
) -> Path:
    """Save an adapter whose every weight matters, as training would; ``base`` is a LoadedBase and stays as it was."""
    import peft
    from tiny_models import fill_adapter

    from m2pt_cli.bases.attachment import unload
    from m2pt_cli.method import preset

    options = {"num_visual_prompts": 2, "num_textual_prompts": 3} | options
    config = preset(method, base.model.config, **options)
    if method != "lora":
        config.base_fingerprint, config.chat_template, config.image_fit = fingerprint, "plain", "crop"
    model = peft.get_peft_model(base.model, config)
    fill_adapter(model)
    model.save_pretrained(folder)
    unload(model)
    return folder


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folder of a tiny base, written once for each choice; tests that change files use `copied`."""
    written: dict[str, Path] = {}

    def folder(**options: Any) -> Path:
        key = "-".join(f"{name}={value}" for name, value in sorted(options.items())) or "plain"
        if key not in written:
            written[key] = write_base(tmp_path_factory.mktemp("bases") / key, **options)
        return written[key]

    return folder


@pytest.fixture
def copied(bases: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of the plain tiny base, to be damaged."""
    return Path(shutil.copytree(bases(), tmp_path / "copied"))


@pytest.fixture(scope="session")
def loaded(bases: Callable[..., Path]) -> Any:
    """The plain tiny base, loaded; tests leave it as they found it."""
    from m2pt_cli.bases.loading import load_base

    return load_base(str(bases()), device="cpu")


@pytest.fixture(scope="session")
def adapter_folder(loaded: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An M²PT adapter of `loaded`, with its fingerprint."""
    return write_adapter(tmp_path_factory.mktemp("adapters") / "demo", loaded, fingerprint=loaded.fingerprint)
