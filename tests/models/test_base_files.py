"""Base folders: every missing file is named, and names of old checkpoints are understood."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from m2pt_cli.errors import UnavailableError
from m2pt_cli.models.base_files import base_tensors, missing_base_files, require_base_files, weight_files
from m2pt_cli.models.catalog import read_geometry


def test_a_whole_folder(bases: Callable[..., Path]) -> None:
    require_base_files(bases())
    geometry = read_geometry(bases())
    tensors = base_tensors(bases(), geometry)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {w.name: w.shape for w in geometry.weights()}


def test_every_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UnavailableError) as caught:
        require_base_files(tmp_path)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "processor_config.json", "a pickle"):
        assert name in caught.value.message


def test_shards(copied: Path) -> None:
    index = copied / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model.safetensors"}}))
    assert missing_base_files(copied) == ["model-00001-of-00002.safetensors"]
    assert [file.name for file in weight_files(copied)] == ["model-00001-of-00002.safetensors", "model.safetensors"]
    for content in ("{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": "../x"}}'):
        index.write_text(content)
        with pytest.raises(UnavailableError, match=r"index\.json"):
            missing_base_files(copied)


def test_weights_of_another_config(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    wider = config | {"text_config": config["text_config"] | {"vocab_size": 97}}
    deeper = config | {"text_config": config["text_config"] | {"num_hidden_layers": 5}}
    for changed, said in ((wider, "shape"), (deeper, "lack 18 of")):
        (copied / "config.json").write_text(json.dumps(changed))
        with pytest.raises(UnavailableError, match=said):
            base_tensors(copied, read_geometry(copied))


def test_damaged_weights(copied: Path) -> None:
    whole = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnavailableError, match="cut short"):
        base_tensors(copied, read_geometry(copied))
