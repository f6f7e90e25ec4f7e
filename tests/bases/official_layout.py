"""Vicuna, CLIP, a projector and an official checkpoint in their authors' layouts, with the goldens' weights."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import torch
from method import golden
from safetensors.torch import save_file
from torch import Tensor

TOWER = "model.vision_tower.vision_tower.vision_model."
WORDS = ["▁", "U", "S", "E", "R", ":", "A", "I", "T", "N", "a", "b", "c", "d", "e", "h", "i", "s", "t", "r", "?", "."]
WORDS += ["▁a", "is", "▁is", "th", "▁th", "▁the", "at", "▁at"]


def write_tokenizer(file: Path, size: int = 128, *, free: int = golden.IMAGE_TOKEN, model_type: int = 2) -> None:
    """A SentencePiece BPE of ``size`` pieces whose NUL is number ``free``."""
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((word, 1) for word in WORDS)]
    pieces += [(f"w{number}", 1) for number in range(len(pieces), size)]
    pieces[free] = ("<0x00>", 6)
    message = b""
    for number, (text, kind) in enumerate(pieces):
        piece = field(1, text.encode()) + b"\x15" + struct.pack("<f", -number) + b"\x18" + bytes([kind])
        message += field(1, piece)
    message += field(2, b"\x18" + bytes([model_type])) + field(3, field(1, b"identity") + b"\x18\x01\x20\x00")
    file.write_bytes(message)


def field(number: int, content: bytes) -> bytes:
    """A field of bytes of a protocol buffer."""
    length, head = len(content), b""
    while length > 127:
        head, length = head + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + head + bytes([length]) + content


def write_vicuna(folder: Path) -> Path:
    """Two pickled shards with an index, as Vicuna is published."""
    folder.mkdir(parents=True)
    config = json.loads((golden.FOLDER / "llm_config.json").read_text())
    extra = {"architectures": ["LlamaForCausalLM"], "torch_dtype": "float16", "transformers_version": "4.28.1"}
    (folder / "config.json").write_text(json.dumps(config | extra))
    write_tokenizer(folder / "tokenizer.model")
    tensors = {f"model.{name}": tensor for name, tensor in part("llm.").items()}
    tensors["lm_head.weight"] = golden.weights()["lm_head.weight"]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(12)
    write_shards(folder, {name: tensor.half() for name, tensor in tensors.items()})
    return folder


def write_clip(folder: Path) -> Path:
    """A whole CLIP, its text tower included, as safetensors."""
    folder.mkdir(parents=True)
    vision = json.loads((golden.FOLDER / "vision_config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": vision, "text_config": {}}))
    processor = {"crop_size": 32, "size": 32, "do_center_crop": True, "do_normalize": True, "do_resize": True}
    processor |= {"feature_extractor_type": "CLIPFeatureExtractor", "resample": 3}
    processor |= {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    tensors = {f"vision_model.{name}": tensor for name, tensor in part("vision.").items()}
    tensors |= {"vision_model.embeddings.position_ids": torch.arange(17)[None], "text_model.x": torch.ones(2)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_projector(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({f"model.mm_projector.{name}": tensor for name, tensor in part("projector.").items()}, file)
    return file


def official_tensors(*, whole: bool = True) -> dict[str, Tensor]:
    """What the authors' trainer saves: with ``whole`` the frozen weights too."""
    tensors = {f"model.mm_projector.{name}": tensor for name, tensor in part("projector.").items()}
    for index in range(5):
        tensors[f"model.prompts.{index}"] = golden.weights()[f"textual_prompts.{index}"].reshape(1, golden.TEXTUAL, 96)
    for index in range(4):
        prompts = golden.weights()[f"visual_prompts.{index}"].reshape(1, golden.VISUAL, 64)
        tensors[f"{TOWER}encoder.prompts.{index}"] = prompts
    if whole:
        tensors["lm_head.weight"] = golden.weights()["lm_head.weight"]
        tensors |= {f"model.{name}": tensor for name, tensor in part("llm.").items()}
        tensors |= {TOWER + name: tensor for name, tensor in part("vision.").items()}
        tensors[f"{TOWER}embeddings.position_ids"] = torch.arange(17)[None]
    return {name: tensor.clone() for name, tensor in tensors.items()}


def write_shards(folder: Path, tensors: dict[str, Tensor], *, safe: bool = False) -> Path:
    """Two shards and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    stem, suffix = ("model", "safetensors") if safe else ("pytorch_model", "bin")
    names, places = sorted(tensors), {}
    for number in (1, 2):
        shard = f"{stem}-{number:05}-of-00002.{suffix}"
        own = {name: tensors[name] for name in names[number - 1 :: 2]}
        save(own, folder / shard)
        places |= dict.fromkeys(own, shard)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def save(content: Any, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".safetensors":
        save_file(content, file, metadata={"format": "pt"})
    else:
        torch.save(content, file)
    return file


def write_parts(folder: Path) -> Path:
    write_vicuna(folder / "vicuna")
    write_clip(folder / "clip")
    write_projector(folder / "projector" / "mm_projector.bin")
    return folder


def copied(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


def part(start: str) -> dict[str, Tensor]:
    return {name.removeprefix(start): t for name, t in golden.weights().items() if name.startswith(start)}
