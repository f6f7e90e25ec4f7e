"""Headers of safetensors files, whole and damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from m2pt_cli.bases.tensor_file import saved_bytes, stored_tensors


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(5, dtype=torch.bfloat16), "c": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    return tmp_path / "x.safetensors"


def test_names_shapes_and_places(file: Path) -> None:
    found = {tensor.name: tensor for tensor in stored_tensors(file)}
    assert {name: tensor.shape for name, tensor in found.items()} == {"a": (5,), "b": (2, 3), "c": (0, 4)}
    assert (found["a"].dtype, found["a"].width, found["b"].width) == ("BF16", 2, 4)
    raw = file.read_bytes()[found["b"].start :][:24]
    assert torch.frombuffer(bytearray(raw), dtype=torch.float32).tolist() == [0, 1, 2, 3, 4, 5]


def test_a_damaged_file_says_so(file: Path) -> None:
    whole = file.read_bytes()
    for content, said in (
        (b"", "cut short"),
        (b"1234567", "cut short"),
        (whole[:40], "cut short"),
        (whole[:-1], "bytes of"),
        (b"\xff" * 8 + whole[8:], "not a safetensors"),
        (whole[:8] + b"[" + whole[9:], "header is damaged"),
        (whole.replace(b'"BF16"', b'"QX16"'), "header is damaged"),
        (whole.replace(b"[2,3]", b"[2,4]"), "header is damaged"),
        (b"PK\x03\x04" + bytes(100), "not a safetensors"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=said):
            stored_tensors(file)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_size_of_a_file_is_known_beforehand(tmp_path: Path, dtype: torch.dtype) -> None:
    for count in range(1, 12):  # every remainder of the padded header
        shapes = {f"layer.{i}.{'x' * count}": (i + 1, count) for i in range(count)}
        file = tmp_path / f"{count}.safetensors"
        save_file({n: torch.zeros(s, dtype=dtype) for n, s in shapes.items()}, file, metadata={"format": "pt"})
        assert saved_bytes(shapes, width=dtype.itemsize) == file.stat().st_size
