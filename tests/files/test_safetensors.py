"""Headers of safetensors files, valid and damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from m2pt_cli.files.safetensors import Outgoing, can_write, saved_bytes, stored_tensors, write_tensors


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


def outgoing(**tensors: torch.Tensor) -> list[Outgoing]:
    return [Outgoing(name, tuple(tensor.shape), tensor.dtype, tensor.clone) for name, tensor in tensors.items()]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    tensors = {
        "b": torch.randn(3, 5),
        "a": torch.randn(7).half(),
        "c": torch.randn(2, 3, 4).bfloat16(),
        "turned": torch.randn(4, 6).T,
        "scalar": torch.tensor(2.5),
    }
    told: list[int] = []
    size = write_tensors(tmp_path / "x.safetensors", outgoing(**tensors), progress=told.append)
    assert size == (tmp_path / "x.safetensors").stat().st_size == told[-1] and len(told) == 5
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    # Values lie where their type may lie.
    assert all(tensor.start % tensor.width == 0 for tensor in stored_tensors(tmp_path / "x.safetensors"))
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_the_order_of_tensors_does_not_matter(tmp_path: Path) -> None:
    tensors = {"b": torch.ones(3), "a": torch.zeros(2).half()}
    write_tensors(tmp_path / "1", outgoing(**tensors))
    write_tensors(tmp_path / "2", reversed(outgoing(**tensors)))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_text("old")

    def fail() -> torch.Tensor:
        raise OSError("gone")

    for read, error in (
        (fail, OSError),
        (lambda: torch.ones(3), ValueError),
        (lambda: torch.ones(2).half(), ValueError),
    ):
        with pytest.raises(error):
            write_tensors(file, [*outgoing(a=torch.ones(9)), Outgoing("b", (2,), torch.float32, read)])
    assert file.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_types() -> None:
    assert can_write(torch.bfloat16) and not can_write(torch.int8) and not can_write(torch.float64)
