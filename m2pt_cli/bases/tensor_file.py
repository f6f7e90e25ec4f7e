"""What a safetensors file holds, read from its header alone: names, types, shapes and places. No torch."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

# Bytes per value of the types that weights are stored in.
_WIDTHS = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_WIDTHS |= {"U64": 8, "U32": 4, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_MAX_HEADER = 100_000_000  # the limit of the format


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its values lie at ``start`` (an offset in the file), ``width`` bytes each."""

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
    """The tensors of a safetensors file, none of whose values is read.

    Raises:
        OSError: the file can't be read.
        ValueError: it is no safetensors file, or it is cut short; the message says which.
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
    shape, width = tuple(int(side) for side in item["shape"]), _WIDTHS[item["dtype"]]
    start, end = item["data_offsets"]
    if start < 0 or end - start != math.prod(shape) * width:
        raise ValueError(name)
    return StoredTensor(file, name, item["dtype"], shape, begin + start, width)


def saved_bytes(shapes: dict[str, tuple[int, ...]], *, width: int = 4) -> int:
    """The exact size of a safetensors file of these tensors as PEFT saves them (``width`` bytes per value)."""
    dtype = {4: "F32", 2: "BF16"}[width]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    # The format orders tensors of one type by name.
    for name in sorted(shapes):
        end = position + math.prod(shapes[name]) * width
        header[name] = {"dtype": dtype, "shape": list(shapes[name]), "data_offsets": [position, end]}
        position = end
    length = len(json.dumps(header, separators=(",", ":")).encode())
    return 8 + -(-length // 8) * 8 + position
