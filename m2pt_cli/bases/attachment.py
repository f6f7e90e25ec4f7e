"""Weights of an adapter into a base, through PEFT but strictly: every key present, none left over, all shapes right."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict

from m2pt_cli.bases.adapters import CONFIG, AdapterInfo
from m2pt_cli.errors import AdapterError, M2PTError
from m2pt_cli.method import M2PTConfig, train_in_fp32
from m2pt_cli.method.interaction import restore_originals


def load_peft_model(model: Any, info: AdapterInfo, *, name: str) -> PeftModel:
    """Attach an adapter to a bare base. Where it does not fit, the base is left as it was.

    Raises:
        AdapterError: the config or a weight does not fit the base; names both sides.
    """
    config = _peft_config(info)
    config.inference_mode = True
    peft_model = None
    try:
        with warnings.catch_warnings():
            # PEFT warns of what is checked, and raised, below.
            warnings.simplefilter("ignore")
            peft_model = PeftModel(model, config, name)
            if info.peft_type == "LORA":
                train_in_fp32(peft_model, name)
            _require_same_weights(peft_model, info, name)
            peft_model.load_adapter(info.folder, name, is_trainable=False, torch_device=str(model.device))
    except (M2PTError, RuntimeError, ValueError, TypeError, KeyError) as error:
        if peft_model is not None:
            unload(peft_model)
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise _refused(info, error) from None
    peft_model.requires_grad_(False)
    return peft_model.eval()


def unload(peft_model: Any) -> None:
    """Take every adapter out again: the base is exactly what it was."""
    # PEFT leaves the trained copies of whole modules (LoRA's projector) in the base.
    restore_originals(peft_model)
    peft_model.unload()


def _peft_config(info: AdapterInfo) -> PeftConfig:
    kind: type[PeftConfig] = LoraConfig if info.peft_type == "LORA" else M2PTConfig
    try:
        with warnings.catch_warnings():
            # A LoRA adapter of m2pt records template and image fit as well, which PEFT does not know.
            warnings.simplefilter("ignore")
            return kind.from_pretrained(str(info.folder))
    except (M2PTError, ValueError, TypeError) as error:
        raise AdapterError(f"{info.folder / CONFIG} is damaged: {_first_line(error)}") from None


def _require_same_weights(peft_model: PeftModel, info: AdapterInfo, name: str) -> None:
    wanted = get_peft_model_state_dict(peft_model, adapter_name=name, save_embedding_layers=False)
    found = {tensor.name: tensor.shape for tensor in info.tensors()}
    for kind, keys in (("lacks", wanted.keys() - found.keys()), ("has, unexpectedly,", found.keys() - wanted.keys())):
        if keys:
            raise AdapterError(f"it {kind} {len(keys)} weights, the first {min(keys)}")
    for key, weight in wanted.items():
        if tuple(weight.shape) != found[key]:
            raise AdapterError(f"{key} has shape {list(found[key])}, this base needs {list(weight.shape)}")


def _refused(info: AdapterInfo, error: Exception) -> AdapterError:
    hint = f"it was trained on {info.base}: name that with --base" if info.base else None
    own = error.hint if isinstance(error, M2PTError) else None
    return AdapterError(f"the adapter {info.name} does not fit this base: {_first_line(error)}", own or hint)


def _first_line(error: Exception) -> str:
    # The last line of PEFT's reports names the key; the first only says that there was an error.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
