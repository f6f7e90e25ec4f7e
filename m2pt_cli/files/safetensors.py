"""Safetensors files: reads the header without the weights, and writes weights one tensor at a time."""

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

# Bytes per value of the stored dtypes.
_WIDTHS = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_WIDTHS |= {"U64": 8, "U32": 4, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_MAX_HEADER = 100_000_000  # the limit of the format


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its values begin at byte ``start`` of the file and have ``width`` bytes each."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    width: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def stored_tensors(file: Path) -> list[StoredTensor]:
    """List the tensors of a safetensors file without reading their values.

    Raises:
        OSError: the file can't be read.
        ValueError: it is not a safetensors file, is truncated, or has a damaged header; the message says which.
    """
    length = os.path.getsize(file)
    with file.open("rb") as stream:
        header_length = int.from_bytes(stream.read(8), "little")
        if length < 8 or not 2 <= header_length <= min(_MAX_HEADER, length - 8):
            raise ValueError("it is not a safetensors file, or it is cut short")
        try:
            header = json.loads(stream.read(header_length))
            found = [_tensor(file, name, item, 8 + header_length) for name, item in header.items() if name[:2] != "__"]
        except (AttributeError, KeyError, TypeError, ValueError, UnicodeDecodeError):
            raise ValueError("its header is damaged") from None
    end = max((tensor.start + tensor.size * tensor.width for tensor in found), default=8 + header_length)
    if end > length:
        raise ValueError(f"it is cut short: {length:,} bytes of {end:,}")
    return found


def _tensor(file: Path, name: str, item: dict, begin: int) -> StoredTensor:
    shape, width = tuple(int(size) for size in item["shape"]), _WIDTHS[item["dtype"]]
    start, end = item["data_offsets"]
    if start < 0 or end - start != math.prod(shape) * width:
        raise ValueError(name)
    return StoredTensor(file, name, item["dtype"], shape, begin + start, width)


def saved_bytes(shapes: dict[str, tuple[int, ...]], *, width: int = 4) -> int:
    """Return the exact size of the file in which PEFT saves tensors of these shapes (``width`` bytes per value)."""
    dtype = {4: "F32", 2: "BF16"}[width]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    # The format orders tensors of one dtype by name.
    for name in sorted(shapes):
        end = position + math.prod(shapes[name]) * width
        header[name] = {"dtype": dtype, "shape": list(shapes[name]), "data_offsets": [position, end]}
        position = end
    length = len(json.dumps(header, separators=(",", ":")).encode())
    return 8 + -(-length // 8) * 8 + position


_TYPES = {"torch.float32": ("F32", 4), "torch.float16": ("F16", 2), "torch.bfloat16": ("BF16", 2)}


@dataclass(frozen=True)
class Outgoing:
    """A tensor to write: its name in the file, shape, dtype, and a function that loads it when it is written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * _TYPES[str(self.dtype)][1]


def write_tensors(file: Path, tensors: Iterable[Outgoing], *, progress: Callable[[int], None] | None = None) -> int:
    """Write a safetensors file atomically.

    Args:
        tensors: fp32, fp16 or bf16; what ``read`` returns must have the declared shape and dtype.
        progress: called with the bytes written so far after every tensor.

    Returns:
        The size of the file in bytes.

    Raises:
        OSError: the file can't be written; no partial file is left.
    """
    import torch

    # The format requires wide dtypes first; sorting by name as well makes the file deterministic.
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
    """Whether tensors of this dtype can be written without conversion."""
    return str(dtype) in _TYPES


@contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """Yield a temporary path that atomically becomes ``file`` if the block succeeds."""
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
        dtype = _TYPES[str(tensor.dtype)][0]
        header[tensor.name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)
