"""Check a base on disk: all files exist and contain the weights that its config requires. Does not import torch."""

from __future__ import annotations

import json
from pathlib import Path

from m2pt_cli.errors import UnavailableError
from m2pt_cli.families.family import LLAVA
from m2pt_cli.families.geometry import Geometry, current_name
from m2pt_cli.files.safetensors import StoredTensor, stored_tensors

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def require_base_files(folder: Path) -> None:
    """Raise UnavailableError if ``folder`` lacks files of a base; the message names all of them."""
    missing = missing_base_files(folder)
    if not missing:
        return
    pickles = sorted(file.name for file in folder.glob("pytorch_model*.bin"))
    if pickles:
        missing.append(f"({pickles[0]} is a pickle, which can run code and is not read)")
    raise UnavailableError(
        f"the base folder {folder} lacks {', '.join(missing)}",
        "save it with model.save_pretrained and processor.save_pretrained, or use --base nano",
    )


def missing_base_files(folder: Path) -> list[str]:
    """Return the files of a base that ``folder`` lacks."""

    def has(*names: str) -> bool:
        return any((folder / name).is_file() for name in names)

    missing = [] if has("config.json") else ["config.json"]
    missing += _missing_weights(folder)
    if not has("tokenizer.json", "tokenizer.model"):
        missing.append("tokenizer.json")
    if not has("processor_config.json", "preprocessor_config.json"):
        missing.append("processor_config.json")
    return missing


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder, one or more."""
    if (folder / INDEX).is_file():
        return [folder / name for name in _shards(folder)]
    return [folder / SINGLE]


def base_tensors(folder: Path, geometry: Geometry) -> dict[str, StoredTensor]:
    """Return every stored weight of the base by its current name, without other entries (buffers, a tied copy).

    Raises:
        UnavailableError: a file is damaged, or a weight is missing or has another shape than the config says.
    """
    stored: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        try:
            stored |= {current_name(tensor.name): tensor for tensor in stored_tensors(file)}
        except (OSError, ValueError) as error:
            raise UnavailableError(
                f"the weights {file} can't be read: {error}", "copy or download that file again"
            ) from None
    if geometry.model_type not in LLAVA.classes:
        # transformers compares them with the model when it loads them; here nothing may import torch.
        return {name: tensor for name, tensor in stored.items() if not (geometry.tied_lm_head and "lm_head" in name)}
    weights = list(geometry.weights())
    absent = [weight.name for weight in weights if weight.name not in stored]
    if absent:
        raise UnavailableError(
            f"the weights in {folder} lack {len(absent)} of {len(weights)} tensors, the first {absent[0]}",
            "the weights are not those of the config.json beside them",
        )
    for weight in weights:
        if stored[weight.name].shape != weight.shape:
            raise UnavailableError(
                f"{weight.name} in {folder} has shape {list(stored[weight.name].shape)}, its config.json says "
                f"{list(weight.shape)}",
                "use the unquantised weights that belong to this config.json",
            )
    return {weight.name: stored[weight.name] for weight in weights}


def _missing_weights(folder: Path) -> list[str]:
    if (folder / INDEX).is_file():
        return [name for name in _shards(folder) if not (folder / name).is_file()]
    return [] if (folder / SINGLE).is_file() else [SINGLE]


def _shards(folder: Path) -> list[str]:
    try:
        names = {str(name) for name in json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UnavailableError(f"{folder / INDEX} is damaged", "copy or download that file again") from None
    outside = [name for name in names if "/" in name or "\\" in name or name.startswith(".")]
    if outside or not names:
        raise UnavailableError(f"{folder / INDEX} names files outside its folder", "do not use this folder")
    return sorted(names)
