"""Read an adapter's folder and load it into a base, strictly: a mismatch is an error that names both sides.

PEFT itself only warns about missing keys, and unpickles files that are not safetensors; neither happens here.
LoRA adapters, the baseline, are loaded by the same functions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from m2pt_cli.errors import AdapterError, is_out_of_memory
from m2pt_cli.files.adapter_names import CONFIG_FILE, PICKLE_SUFFIXES, WEIGHTS_FILE
from m2pt_cli.method.architecture import read_architecture
from m2pt_cli.method.config import M2PTConfig, MethodError
from m2pt_cli.method.foreign_adapters import (
    altered_weights,
    current_names,
    injection_hint,
    is_random,
    keep_altered,
    mismatch_cause,
    restore_base_weights,
    restore_modules,
    saved_base_weights,
    unsupported,
    update_targets,
)
from m2pt_cli.method.interaction import restore_originals, train_in_fp32

# Settings that must be the same at inference, in the configs of all methods; fields of M2PTConfig.
INFERENCE_KEYS = ("chat_template", "image_fit", "base_fingerprint")
_CHANGED = f"take {CONFIG_FILE} from where it was saved; a newer PEFT or m2pt may have written it: pip install -U"


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter as it is on disk.

    Attributes:
        folder: its folder.
        config: the config of M²PT or LoRA.
        tensors: the tensors by name; names of an older transformers are converted to current ones.
        inference: dict of ``chat_template``, ``image_fit`` and ``base_fingerprint``; a value is None if it is not set.
        ignored: settings in the config that this PEFT does not know; PEFT ignores them with a warning.
    """

    folder: Path
    config: PeftConfig
    tensors: dict[str, Tensor]
    inference: dict[str, str | None]
    ignored: tuple[str, ...] = ()


def read_adapter_config(folder: Path) -> tuple[PeftConfig, dict[str, str | None]]:
    """Return the config of the adapter in a folder, and what must be the same at inference (`INFERENCE_KEYS`).

    Raises:
        AdapterError: no such folder, no config in it, not JSON, not an M²PT or LoRA adapter, a value out of range.
    """
    config, inference, _ = _read_config(folder)
    return config, inference


def _read_config(folder: Path) -> tuple[PeftConfig, dict[str, str | None], tuple[str, ...]]:
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
    kinds: dict[Any, type[PeftConfig]] = {"M2PT": M2PTConfig, "LORA": LoraConfig}
    found = stored.pop("peft_type", None)
    if not isinstance(found, str) or found not in kinds:
        raise AdapterError(f"{path}: peft_type is {found!r}, not M2PT or LORA", "give an adapter made by `m2pt train`")
    inference = {key: stored.get(key) for key in INFERENCE_KEYS}
    try:
        for key, value in inference.items():
            if value is not None and not isinstance(value, str):
                raise MethodError(f"{key} must be a string or null, not {value!r}")
        config, ignored = _config(kinds[found], stored)
    except (TypeError, ValueError) as error:
        raise AdapterError(f"{path}: {error}", _CHANGED) from error
    reason = unsupported(config) if isinstance(config, LoraConfig) else None
    if reason is not None:
        raise AdapterError(f"{path}: {reason}", "m2pt reads LoRA, also with DoRA, rsLoRA and modules_to_save")
    return config, inference, ignored


def _config(kind: type[PeftConfig], stored: dict[str, Any]) -> tuple[PeftConfig, tuple[str, ...]]:
    known = {field.name for field in fields(kind) if field.init} - {"runtime_config"}
    # m2pt adds what must be the same at inference; `megatron_core` names a module to import, which LLaVA does not use.
    own = {*INFERENCE_KEYS, "visual_tokens", "megatron_config", "megatron_core"}
    extra = own if kind is LoraConfig else set()
    # A key with the value None has no effect. Other unknown keys are ignored for LoRA, as in PEFT, and an error for
    # M²PT.
    unknown = tuple(sorted(key for key in stored.keys() - known - extra if stored[key] is not None))
    if unknown and kind is not LoraConfig:
        raise MethodError(f"unknown setting {unknown[0]!r}")
    return kind(**{name: value for name, value in stored.items() if name in known - extra}), unknown


def read_adapter_files(folder: Path) -> AdapterFiles:
    """Return the config and tensors of the adapter in a folder.

    Raises:
        AdapterError: as `read_adapter_config`, or weights that are missing, a pickle, damaged or not finite.
    """
    config, inference, ignored = _read_config(folder)
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
    names = current_names(tensors)
    if isinstance(config, LoraConfig) and any(old != new for old, new in names.items()):
        update_targets(config, names)
    return AdapterFiles(folder, config, {names[name]: value for name, value in tensors.items()}, inference, ignored)


def load_adapter_strictly(
    model: nn.Module,
    folder: Path,
    name: str = "default",
    *,
    base_fingerprint: str | None = None,
    trainable: bool = False,
    report: Callable[[str], None] | None = None,
) -> PeftModel:
    """Load the M²PT or LoRA adapter in ``folder`` into a base. On failure the model is unchanged.

    A LoRA may change weights of the base (``bias``, ``save_embedding_layers``, PiSSA): `take_out` undoes that.

    Args:
        model: a LLaVA without wrappers, changed in place, or a PEFT model that gets another, inactive adapter.
        folder: contains ``adapter_config.json`` and ``adapter_model.safetensors``.
        name: the adapter's name in the model.
        base_fingerprint: of the base; None for a base built in memory: then only the geometry is compared.
        trainable: whether to continue training it.
        report: called with a line about settings that are ignored, as PEFT ignores them.

    Raises:
        AdapterError: the adapter is missing, invalid or does not fit, or was trained on another base.
        MethodError: the method was never tested on this base.
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
    config = files.config
    config.inference_mode = not trainable
    is_new = not isinstance(model, PeftModel)
    before = altered_weights(config, model, files.tensors) if isinstance(config, LoraConfig) else {}
    if before and not is_new:
        raise AdapterError(f"{folder} changes weights of the base itself", "load it alone, on a bare base")
    adapted: Any  # a PeftModel, whose tuner torch types as Tensor | Module
    try:
        if isinstance(model, PeftModel):
            adapted = model
            adapted.add_adapter(name, config)
        else:
            adapted = PeftModel(model, config, name)
    except MethodError:
        raise
    except Exception as error:
        # PEFT may raise any error for a LoRA's unchecked settings; those of M²PT are checked by `M2PTConfig`.
        if not isinstance(error, ValueError) and (not isinstance(config, LoraConfig) or is_out_of_memory(error)):
            raise
        if is_new:
            restore_modules(model)
            keep_altered(model, before)
            restore_base_weights(model)
        said = " ".join(str(error).split()) or type(error).__name__
        raise AdapterError(f"{folder} does not fit the model: {said}", injection_hint(config)) from error
    if isinstance(config, LoraConfig):
        train_in_fp32(adapted, name)
    try:
        wanted = get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False)
        if isinstance(config, LoraConfig):
            wanted |= saved_base_weights(adapted, files.tensors)
        _compare(files, wanted, adapted.base_model.model)
    except AdapterError:
        if is_new:
            keep_altered(adapted.base_model.model, before)
            take_out(adapted)
        else:
            adapted.delete_adapter(name)
        raise
    set_peft_model_state_dict(adapted, files.tensors, adapter_name=name)
    keep_altered(adapted.base_model.model, before)
    if files.ignored and report is not None:
        report(
            f"{folder} has settings that this version of PEFT does not know, which are left out: "
            f"{', '.join(files.ignored)}; it may have been made by a newer one"
        )
    if is_random(config) and report is not None:
        report(f"{folder} begins with a random decomposition, which no load repeats: {injection_hint(config)}")
    if is_new and not trainable:
        adapted.eval()
    return adapted


def take_out(adapted: Any) -> None:
    """Remove every adapter from a PEFT model and restore the base exactly."""
    base = adapted.base_model.model
    restore_originals(adapted)  # PEFT's own `unload` keeps trained copies of whole modules, such as LoRA's projector
    adapted.base_model.unload()
    restore_base_weights(base)


def _compare(files: AdapterFiles, wanted: Mapping[str, Tensor], base: nn.Module) -> None:
    """Raise an `AdapterError` unless the file contains exactly the wanted tensors."""
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
    cause = mismatch_cause(found, wanted, base) if isinstance(files.config, LoraConfig) else None
    if cause is not None:
        raise AdapterError(f"{files.folder} does not fit this base: {cause[0]}", cause[1])
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
        f"{CONFIG_FILE} and {WEIGHTS_FILE} must come from the same save_pretrained: take both from there again",
    )


def _geometry(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Return the number of layers and the width of ``vision`` and ``text``, for those that have prompts."""
    layers: dict[str, set[int]] = {}
    widths: dict[str, int] = {}
    for name, tensor in tensors.items():
        match = re.search(r"\.(vision_tower|language_model)\..*\blayers\.(\d+)\.self_attn\.m2pt_prompts$", name)
        if match is not None and tensor.ndim == 2:
            part = "vision" if match[1] == "vision_tower" else "text"
            layers.setdefault(part, set()).add(int(match[2]))
            widths[part] = tensor.shape[1]
    # From the highest layer, so that a missing layer in between is reported as missing keys, not as another base.
    return {part: (max(indices) + 1, widths[part]) for part, indices in layers.items()}


def _describe(geometry: Mapping[str, tuple[int, int]]) -> str:
    return ", ".join(f"{layers} {part} layers of width {width}" for part, (layers, width) in sorted(geometry.items()))
