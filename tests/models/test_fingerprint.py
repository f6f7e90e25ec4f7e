"""The fingerprint is the same for the same stored weights, whatever their names, shards and loading."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from m2pt_cli.models.fingerprint import base_fingerprint

EMBEDDING = "language_model.model.embed_tokens.weight"


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> str:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return base_fingerprint(folder)


def test_names_shards_and_extra_tensors_do_not_matter(copied: Path) -> None:
    original = base_fingerprint(copied)
    assert len(original) == 64
    tensors = load_file(copied / "model.safetensors")
    renamed = {
        name.replace("vision_tower.", "vision_tower.vision_model.").replace("language_model.lm_head", "lm_head"): tensor
        for name, tensor in tensors.items()
    }
    renamed["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(10)[None]
    assert rewrite(copied, renamed) == original
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, copied / file)
    (copied / "model.safetensors").unlink()
    weight_map = {name: file for file, part in shards.items() for name in part}
    (copied / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert base_fingerprint(copied) == original


def test_another_value_shape_or_setting_is_another_base(copied: Path, bases: Callable[..., Path]) -> None:
    original = base_fingerprint(copied)
    assert original == base_fingerprint(bases()) != base_fingerprint(bases(seed=1))
    tensors = load_file(copied / "model.safetensors")
    last = tensors[EMBEDDING].clone()
    last[-1, -1] += 1  # first and last value of every matrix are among the samples
    assert rewrite(copied, tensors | {EMBEDDING: last}) != original
    assert rewrite(copied, tensors) == original
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"vision_feature_layer": -1}))
    assert base_fingerprint(copied) != original


def test_training_that_moves_every_value_is_seen(copied: Path) -> None:
    original = base_fingerprint(copied)
    tensors = load_file(copied / "model.safetensors")
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    assert rewrite(copied, tensors | {name: tensors[name] * 1.0001}) != original
