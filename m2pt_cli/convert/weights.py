"""Read the weights of untrusted checkpoints: safetensors or .bin, one file or several. Code in them is never run."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2pt_cli.errors import M2PTError
from m2pt_cli.files.safetensors import stored_tensors

if TYPE_CHECKING:
    import torch

# Creates the error for a message: an AdapterError, or the error of a base, with a hint.
Fault = Callable[[str], M2PTError]

_INDEX = ".index.json"
# Files searched for in a folder, in this order: safetensors is preferred, because it can't contain code.
LAYOUTS = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
_MAX_INDEX = 50_000_000


def weight_files(place: Path, fault: Fault) -> list[Path]:
    """The weight files of a checkpoint: ``place`` itself if it is a file, else those in the folder. No torch.

    Args:
        place: a folder or one file.
        fault: creates the error to raise.

    Raises:
        M2PTError: there are no weights, a file is missing, or the index names a file outside the folder.
    """
    if place.is_file():
        return [place]
    name = next((name for name in LAYOUTS if (place / name).is_file()), None)
    if name is None:
        raise fault(f"{place} holds none of {', '.join(LAYOUTS)}")
    if not name.endswith(_INDEX):
        return [_own_file(place, name, fault)]
    return [_own_file(place, shard, fault) for shard in sorted(set(_weight_map(place / name, fault).values()))]


def read_weights(place: Path, fault: Fault) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint by its name, memory-mapped: values are read from disk when they are used.

    Pickled files are read with ``weights_only=True``: tensors and plain containers only, no code.

    Args:
        place: a folder or one file.
        fault: creates the error to raise.

    Raises:
        M2PTError: a file is damaged or truncated, or contains anything but plain tensors.
    """
    tensors: dict[str, torch.Tensor] = {}
    files = weight_files(place, fault)
    for file in files:
        found = _safetensors(file, fault) if file.suffix == ".safetensors" else _pickled(file, fault)
        duplicates = tensors.keys() & found.keys()
        if duplicates:
            raise fault(f"{file} holds {shown(min(duplicates))}, which another file of the checkpoint holds as well")
        tensors |= found
    if place.is_dir() and len(files) > 1:
        index = next(place / name for name in LAYOUTS if name.endswith(_INDEX) and (place / name).is_file())
        absent = sorted(_weight_map(index, fault).keys() - tensors.keys())
        if absent:
            raise fault(f"{place} lacks {listed(absent)}, which its {index.name} lists")
    return tensors


def shown(name: object) -> str:
    """A name from a file, truncated to 100 characters for a message."""
    text = str(name)
    return text if len(text) <= 100 else f"{text[:97]}..."


def listed(names: Iterable[str], most: int = 3) -> str:
    """The first ``most`` of some names, separated by commas, for a message."""
    all_names = list(names)
    return ", ".join(shown(name) for name in all_names[:most]) + (", ..." if len(all_names) > most else "")


def _weight_map(index: Path, fault: Fault) -> dict[str, str]:
    """Read an index file: the shard file of every tensor."""
    try:
        if index.stat().st_size > _MAX_INDEX:
            raise ValueError("it is too large for an index")
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not (isinstance(names, dict) and names and all(isinstance(name, str) for name in names.values())):
            raise ValueError("its weight_map is no table of file names")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise fault(f"{index} is damaged: {_first_line(error)}") from None
    return names


def _own_file(folder: Path, name: str, fault: Fault) -> Path:
    """The path of a weight file directly in ``folder``; other paths and links out of the folder are refused."""
    file = folder / name
    if not name or Path(name).name != name or "\\" in name:
        raise fault(f"the index of {folder} names {shown(name)!r}, which is not a file of its folder")
    if not file.is_file():
        raise fault(f"{folder} lacks {shown(name)}, which its index names")
    home = folder.resolve()
    # The Hub's cache links the files of a snapshot to the repository's blobs.
    if file.resolve().parent not in (home, home.parent.parent / "blobs"):
        raise fault(f"{file} is a link out of its folder")
    if file.suffix not in (".safetensors", ".bin"):
        raise fault(f"{file} is neither .safetensors nor .bin")
    return file


def _safetensors(file: Path, fault: Fault) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        stored_tensors(file)
        return load_file(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise fault(f"{file} can't be read: {_first_line(error)}") from None


def _pickled(file: Path, fault: Fault) -> dict[str, torch.Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = _unpickle(file)
    except pickle.UnpicklingError:
        # torch's own message suggests to allow the code, so it is not shown.
        raise fault(f"{file} is damaged, or holds more than weights: code, which is not run") from None
    except Exception as error:
        # A damaged or malicious file makes torch raise many types of errors; none of them is a bug of this program.
        raise fault(f"{file} can't be read: {_first_line(error)}") from None
    if not isinstance(content, dict) or not content:
        raise fault(f"{file} holds a {type(content).__name__} instead of weights by name")
    return {_checked(file, name, tensor, fault): tensor.detach() for name, tensor in content.items()}


def _unpickle(file: Path) -> Any:
    import zipfile

    import torch

    # Files written before torch 1.6 are not zip archives and can't be memory-mapped.
    return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))


def _checked(file: Path, name: object, tensor: object, fault: Fault) -> str:
    import torch

    if not isinstance(name, str) or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        raise fault(f"{file} holds {shown(name)} of type {type(tensor).__name__} where weights by name are expected")
    assert isinstance(tensor, torch.Tensor)
    # A non-contiguous view can have a huge shape with only a few stored values.
    is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not (is_plain and tensor.is_contiguous()):
        raise fault(f"{file} holds {shown(name)} in a form that is no plain tensor")
    return name


def _first_line(error: BaseException) -> str:
    return shown((str(error).splitlines() or [type(error).__name__])[0])
