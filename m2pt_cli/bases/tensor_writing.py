"""Writing a safetensors file tensor by tensor: memory holds one of them, however large the file is."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_TYPES = {"torch.float32": ("F32", 4), "torch.float16": ("F16", 2), "torch.bfloat16": ("BF16", 2)}


@dataclass(frozen=True)
class Outgoing:
    """A tensor to be written: its name in the file, shape and type, and how to get it once its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * _TYPES[str(self.dtype)][1]


def write_tensors(file: Path, tensors: Iterable[Outgoing], *, progress: Callable[[int], None] | None = None) -> int:
    """Write a safetensors file whole or not at all.

    Args:
        tensors: fp32, fp16 or bf16; what ``read`` returns must have the promised shape and type.
        progress: told the bytes written so far after every tensor.

    Returns:
        Its size in bytes.

    Raises:
        OSError: it can't be written; nothing is left behind.
    """
    import torch

    # The format wants large types first; names make the order, and with it the file, the same every time.
    ordered = sorted(tensors, key=lambda tensor: (-_TYPES[str(tensor.dtype)][1], tensor.name))
    head = _header(ordered)
    with replaced(file) as partial, partial.open("wb") as stream:
        stream.write(len(head).to_bytes(8, "little") + head)
        for outgoing in ordered:
            tensor = outgoing.read()
            if tuple(tensor.shape) != outgoing.shape or tensor.dtype != outgoing.dtype:
                raise ValueError(f"{outgoing.name} is not what was promised")
            stream.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            if progress is not None:
                progress(stream.tell())
        size = stream.tell()
        stream.flush()
        os.fsync(stream.fileno())
    return size


def can_write(dtype: torch.dtype) -> bool:
    """Whether tensors of this type can be written as they are."""
    return str(dtype) in _TYPES


@contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """A place to write, which becomes ``file`` in one step when the block ends well."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def _header(tensors: list[Outgoing]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        end = position + tensor.bytes
        kind = _TYPES[str(tensor.dtype)][0]
        header[tensor.name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)
