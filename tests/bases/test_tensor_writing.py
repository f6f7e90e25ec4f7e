"""safetensors files written tensor by tensor are those that the library reads, or are not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from m2pt_cli.bases.tensor_file import stored_tensors
from m2pt_cli.bases.tensor_writing import Outgoing, can_write, write_tensors


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
