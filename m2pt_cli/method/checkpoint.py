"""Reads an adapter folder and loads it into a base strictly: a mismatch is an error that names adapter and base.

PEFT itself only warns about missing keys, and unpickles files that are not safetensors; this module does neither.
LoRA adapters, the baseline, are loaded the same way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from m2pt_cli.errors import AdapterError
from m2pt_cli.files.adapter_names import CONFIG_FILE, PICKLE_SUFFIXES, WEIGHTS_FILE
from m2pt_cli.method.architecture import read_architecture
from m2pt_cli.method.config import M2PTConfig, MethodError
from m2pt_cli.method.interaction import restore_originals, train_in_fp32

# Config entries, of every method, that inference must take over from training; fields of M2PTConfig.
INFERENCE_KEYS = ("chat_template", "image_fit", "base_fingerprint")


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter as stored on disk.

    Attributes:
        folder: the folder that it was read from.
        config: an `M2PTConfig` or a `LoraConfig`.
        tensors: the weights by their names in the file.
        inference: ``chat_template``, ``image_fit`` and ``base_fingerprint``; None if the config has none.
    """

    folder: Path
    config: PeftConfig
    tensors: dict[str, Tensor]
    inference: dict[str, str | None]


def read_adapter_config(folder: Path) -> tuple[PeftConfig, dict[str, str | None]]:
    """Return the config of the adapter in a folder, and its values of `INFERENCE_KEYS`.

    Raises:
        AdapterError: no such folder, no config in it, not JSON, not an M²PT or LoRA adapter, a value out of range.
    """
    if not folder.is_dir():
        raise AdapterError(
            f"there is no adapter at {folder}" + (": it is a file" if folder.is_file() else ""),
            "give the folder that `m2pt train` printed at its end",
        )
    path = folder / CONFIG_FILE
    if not path.is_file():
        held = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
        raise AdapterError(
            f"{folder} is no adapter: it has no {CONFIG_FILE} (it holds {held})",
            f"give a folder with {CONFIG_FILE} and {WEIGHTS_FILE}",
        )
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise AdapterError(f"{path} can't be read: {error}", "copy the adapter again") from error
    if not isinstance(stored, dict):
        raise AdapterError(f"{path} holds a {type(stored).__name__}, not a table of settings", "copy the adapter again")
    config_classes: dict[Any, type[PeftConfig]] = {"M2PT": M2PTConfig, "LORA": LoraConfig}
    found = stored.pop("peft_type", None)
    if not isinstance(found, str) or found not in config_classes:
        raise AdapterError(f"{path}: peft_type is {found!r}, not M2PT or LORA", "give an adapter made by `m2pt train`")
    inference = {key: stored.get(key) for key in INFERENCE_KEYS}
    try:
        for key, value in inference.items():
            if value is not None and not isinstance(value, str):
                raise MethodError(f"{key} must be a string or null, not {value!r}")
        return _config(config_classes[found], stored), inference
    except (TypeError, ValueError) as error:
        raise AdapterError(f"{path}: {error}", "the adapter was changed by hand or made by another version") from error


def _config(config_class: type[PeftConfig], stored: dict[str, Any]) -> PeftConfig:
    known = {field.name for field in fields(config_class) if field.init}
    extra: set[str] = set()
    if config_class is LoraConfig:
        # m2pt adds the inference keys; `megatron_core` names a module to import, which a LLaVA never needs.
        extra = {*INFERENCE_KEYS, "visual_tokens", "megatron_config", "megatron_core"}
    unknown = sorted(stored.keys() - known - extra)
    if unknown:
        raise MethodError(f"unknown setting {unknown[0]!r}")
    return config_class(**{name: value for name, value in stored.items() if name in known - extra})


def read_adapter_files(folder: Path) -> AdapterFiles:
    """Read config and tensors of the adapter in a folder.

    Raises:
        AdapterError: as `read_adapter_config`, or the weights are missing, a pickle, damaged or not finite.
    """
    config, inference = read_adapter_config(folder)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        pickles = sorted(entry.name for entry in folder.iterdir() if entry.suffix in PICKLE_SUFFIXES)
        if pickles:
            raise AdapterError(
                f"{folder / pickles[0]} is a pickle, which can run code when it is read; it was not opened",
                f"ask for the adapter as {WEIGHTS_FILE}, or import a checkpoint of the authors with `m2pt import`",
            )
        raise AdapterError(f"{folder} has no {WEIGHTS_FILE}", "copy the adapter again, with its weights")
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise AdapterError(f"{path} is damaged: {error}", "copy the adapter again") from error
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise AdapterError(f"{path}: {name} holds values that are not finite numbers", "train the adapter again")
    return AdapterFiles(folder, config, tensors, inference)


def load_adapter_strictly(
    model: nn.Module,
    folder: Path,
    name: str = "default",
    *,
    base_fingerprint: str | None = None,
    trainable: bool = False,
) -> PeftModel:
    """Load the M²PT or LoRA adapter in ``folder`` into a base. On failure the model is left unchanged.

    Args:
        model: a bare LLaVA, which is changed in place, or a PEFT model, to which an inactive adapter is added.
        folder: holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        name: the adapter's name in the model.
        base_fingerprint: fingerprint of the base; None for a base built in memory compares the geometry only.
        trainable: whether the adapter will be trained further.

    Raises:
        AdapterError: the adapter is invalid, does not fit, or was trained on another base.
        MethodError: the base is untested.
    """
    files = read_adapter_files(folder)
    trained_on = files.inference["base_fingerprint"]
    if base_fingerprint is not None and trained_on is not None and base_fingerprint != trained_on:
        raise AdapterError(
            f"{folder} was trained on another base: its base has fingerprint {trained_on[:16]}, this one "
            f"{base_fingerprint[:16]}",
            f"load the base it was trained on: --base {files.config.base_model_name_or_path or 'NAME'}",
        )
    if isinstance(model, PeftModel) and name in model.peft_config:
        raise AdapterError(f"there is an adapter {name!r} in the model already", "choose another name")
    files.config.inference_mode = not trainable
    is_new = not isinstance(model, PeftModel)
    adapted: Any  # a PeftModel, whose tuner torch types as Tensor | Module
    try:
        if isinstance(model, PeftModel):
            adapted = model
            adapted.add_adapter(name, files.config)
        else:
            adapted = PeftModel(model, files.config, name)
    except MethodError:
        raise
    except ValueError as error:
        raise AdapterError(f"{folder} does not fit the model: {error}", "load the base it was trained on") from error
    if isinstance(files.config, LoraConfig):
        train_in_fp32(adapted, name)
    try:
        wanted = get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False)
        _compare(files, wanted, adapted.base_model.model)
    except AdapterError:
        if is_new:
            restore_originals(adapted)  # PEFT's own `unload` leaves LoRA's copy of the projector in place
            adapted.base_model.unload()
        else:
            adapted.delete_adapter(name)
        raise
    set_peft_model_state_dict(adapted, files.tensors, adapter_name=name)
    if is_new and not trainable:
        adapted.eval()
    return adapted


def _compare(files: AdapterFiles, wanted: Mapping[str, Tensor], base: nn.Module) -> None:
    """Raise an `AdapterError` unless the file holds exactly the expected tensors."""
    found = files.tensors
    missing, unexpected = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    misshapen = sorted(key for key in wanted.keys() & found.keys() if wanted[key].shape != found[key].shape)
    if not (missing or unexpected or misshapen):
        return
    adapter, own = _geometry(found), _geometry(wanted)
    if any(adapter[part] != own[part] for part in adapter.keys() & own.keys()):
        raise AdapterError(
            f"{files.folder} is an adapter for a base with {_describe(adapter)}; "
            f"this base has {read_architecture(base).describe()}",
            f"load the base it was trained on: --base {files.config.base_model_name_or_path or 'NAME'}",
        )
    faults = [
        f"{len(keys)} {kind} (the first is {keys[0]})"
        for kind, keys in (("missing", missing), ("unexpected", unexpected))
        if keys
    ]
    if misshapen:
        key = misshapen[0]
        faults.append(f"{key} is {list(found[key].shape)} in the file and {list(wanted[key].shape)} by the config")
    raise AdapterError(
        f"the weights in {files.folder} are not those its config describes: {'; '.join(faults)}",
        "copy the adapter again; config and weights must come from the same run",
    )


def _geometry(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Return number of layers and width of ``vision`` and ``text``, as far as the prompt tensors show them."""
    layers: dict[str, set[int]] = {}
    widths: dict[str, int] = {}
    for name, tensor in tensors.items():
        match = re.search(r"\.(vision_tower|language_model)\..*\blayers\.(\d+)\.self_attn\.m2pt_prompts$", name)
        if match is not None and tensor.ndim == 2:
            part = "vision" if match[1] == "vision_tower" else "text"
            layers.setdefault(part, set()).add(int(match[2]))
            widths[part] = tensor.shape[1]
    # Count up to the highest layer, so that a gap is reported as missing keys, not as another base.
    return {part: (max(indices) + 1, widths[part]) for part, indices in layers.items()}


def _describe(geometry: Mapping[str, tuple[int, int]]) -> str:
    return ", ".join(f"{layers} {part} layers of width {width}" for part, (layers, width) in sorted(geometry.items()))
