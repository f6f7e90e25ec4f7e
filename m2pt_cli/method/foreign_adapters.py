"""LoRA adapters written by other tools and versions: old names, unknown settings, and weights of the base.

Every adapter that PEFT loads is loaded, with the same outputs. Where PEFT fails on names of an older transformers (a
regular expression in ``target_modules``, a fully trained module), the names are updated.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from m2pt_cli.families.geometry import current_name

# The prefix of the base's modules in the names that PEFT saves.
PREFIX = "base_model.model."
# LoRA initialisations that subtract the adapter's initial value from the base's weights, at every load.
_ALTERING = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Settings that require more than the model's forward; m2pt's own loops do not implement it.
_UNSUPPORTED = {
    "alora_invocation_tokens": "it acts from its invocation tokens on",
    "arrow_config": "it routes between several adapters",
    "layer_replication": "it repeats layers of the base",
    "use_qalora": "it belongs to a quantised base",
}
_EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight")
_ORIGINALS: WeakKeyDictionary[nn.Module, dict[str, Tensor]] = WeakKeyDictionary()


def unsupported(config: LoraConfig) -> str | None:
    """Return the reason why this LoRA can't be used here, or None."""
    found = next((name for name in _UNSUPPORTED if getattr(config, name, None)), None)
    return None if found is None else f"{found} is not supported: {_UNSUPPORTED[found]}"


def current_names(names: Iterable[str]) -> dict[str, str]:
    """Map each name of a saved tensor to its name in the current transformers."""
    return {name: PREFIX + current_name(name[len(PREFIX) :]) if name.startswith(PREFIX) else name for name in names}


def update_targets(config: LoraConfig, names: Mapping[str, str]) -> None:
    """Update the module names in ``config`` to the current transformers, in place.

    Args:
        config: the saved config, whose weights have old names.
        names: old and current name of each tensor, see `current_names`.
    """
    modules = {_module(old): _module(new) for old, new in names.items() if ".lora_" in old}
    targets = config.target_modules
    said = [targets] if isinstance(targets, str) else list(targets or ())
    if targets != "all-linear" and any("." in target for target in said):
        # A regular expression for old names can't be rewritten; the weights show which modules it matched.
        config.target_modules = sorted(set(modules.values()))
        config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    for name in ("rank_pattern", "alpha_pattern"):
        pattern: dict[str, Any] = getattr(config, name) or {}
        matched = {new: _first_match(pattern, old) for old, new in modules.items()}
        setattr(config, name, {re.escape(new): pattern[key] for new, key in matched.items() if key is not None})
    if config.modules_to_save:
        config.modules_to_save = [_current_module(name) for name in config.modules_to_save]
    if isinstance(config.trainable_token_indices, dict):
        config.trainable_token_indices = {
            _current_module(name): tokens for name, tokens in config.trainable_token_indices.items()
        }


def _module(tensor: str) -> str:
    return tensor.removeprefix(PREFIX).partition(".lora_")[0]


def _current_module(name: str) -> str:
    return current_name(name + ".").removesuffix(".")


def _first_match(pattern: Mapping[str, Any], module: str) -> str | None:
    """Return the key of ``rank_pattern`` or ``alpha_pattern`` that PEFT uses for a module."""
    return next((key for key in pattern if re.match(rf"(.*\.)?({key})$", module)), None)


def saved_base_weights(model: PeftModel, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the base's weights that PEFT overwrites with saved ones (``save_embedding_layers``)."""
    own = dict(model.named_parameters())
    return {name: own[name] for name in names if name in own and ".lora_" not in name}


def altered_weights(config: LoraConfig, base: nn.Module, saved: Iterable[str]) -> dict[str, Tensor]:
    """Return copies of the base's weights that loading may change, for `restore_base_weights`.

    Args:
        base: the base before the adapter is loaded.
        saved: names of the adapter's tensors.
    """
    own = {_plain(name.removeprefix(PREFIX)): parameter for name, parameter in base.named_parameters()}
    stored = {_plain(name.removeprefix(PREFIX)) for name in saved if ".lora_" not in name}
    whole = [f".{module}." for module in config.modules_to_save or ()]  # the adapter holds copies of these
    return {
        name: parameter.detach().clone()
        for name, parameter in own.items()
        if _alters_base(config)
        or (name in stored and not any(module in f".{name}" for module in whole))
        or (config.bias != "none" and name.endswith(".bias"))
    }


def _alters_base(config: Any) -> bool:
    init = config.init_lora_weights
    # PEFT 0.20 has no KaSA.
    return getattr(config, "kasa_config", None) is not None or (
        isinstance(init, str) and init.lower().startswith(_ALTERING)
    )


def is_random(config: PeftConfig) -> bool:
    """Return whether an adapter changes the base by a random decomposition, which differs at every load."""
    init = config.init_lora_weights if isinstance(config, LoraConfig) else None
    return isinstance(init, str) and init.lower().startswith("pissa_niter_")


def injection_hint(config: PeftConfig) -> str:
    """Return the next step after PEFT failed to load an adapter into a model."""
    if isinstance(config, LoraConfig) and _alters_base(config):
        return (
            "save it as a plain LoRA where it was trained: PEFT's save_pretrained with "
            "path_initial_model_for_weight_conversion"
        )
    return "load the base it was trained on, or save it again with PEFT's save_pretrained"


def restore_modules(model: nn.Module) -> None:
    """Restore the base's own modules after PEFT failed and had replaced some of them."""
    for path, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            model.set_submodule(path, module.get_base_layer())
        elif isinstance(module, AuxiliaryTrainingWrapper):
            model.set_submodule(path, module.original_module)


def keep_altered(base: nn.Module, before: Mapping[str, Tensor]) -> None:
    """Store those weights of ``before`` that have changed."""
    now = {_plain(name): parameter for name, parameter in base.named_parameters()}
    changed = {name: value for name, value in before.items() if not torch.equal(now[name], value)}
    if changed:
        _ORIGINALS[base] = changed


def restore_base_weights(base: nn.Module) -> None:
    """Restore the base's own weights after its adapter was removed."""
    own = dict(base.named_parameters())
    for name, value in _ORIGINALS.pop(base, {}).items():
        own[name].data.copy_(value)


def _plain(name: str) -> str:
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


def mismatch_cause(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], base: nn.Module
) -> tuple[str, str] | None:
    """Return why a LoRA's weights do not fit, with the next step; None if the cause is unknown.

    Args:
        found: the adapter's tensors, under current names; wanted: those its config asks for on this base.
    """
    gathered = "save it again with the weights gathered (DeepSpeed: zero_to_fp32.py, or zero3_save_16bit_model)"
    if any(tensor.numel() == 0 for tensor in found.values()):
        return "some tensors are empty: they were saved by ZeRO-3 or FSDP without being gathered", gathered
    strange = sorted(found.keys() - wanted.keys())
    if any(re.search(r"\.lora_[AB]\.[^.]+\.weight$", name) for name in strange):
        return (
            f"its names hold the name of the adapter ({strange[0]}): they are those of state_dict()",
            "save it with PEFT's model.save_pretrained(folder)",
        )
    if any(name.startswith(f"{PREFIX}model.layers.") for name in strange):
        return (
            f"it belongs to a language model alone, or to the original LLaVA code ({strange[0]})",
            "train it on a LLaVA of transformers, as in llava-hf/llava-1.5-7b-hf; m2pt does not convert it",
        )
    own = {_plain(name): parameter for name, parameter in base.named_parameters()}
    for name in found:
        here = own.get(_plain(name.removeprefix(PREFIX)))
        if _plain(name).endswith(_EMBEDDINGS) and here is not None and len(found[name]) != len(here):
            return (
                f"its base had a vocabulary of {len(found[name]):,} tokens, this one has {len(here):,}",
                "save the base with the resized embeddings and its tokenizer, and name that folder with --base",
            )
    for name in sorted(found.keys() & wanted.keys()):
        rank = 1 if ".lora_B." in name else 0
        theirs, ours = found[name].shape, wanted[name].shape
        if len(theirs) == len(ours) == 2 and theirs[rank] == ours[rank] and theirs != ours:
            return (
                f"its base has other widths: {_module(name)} takes {list(ours)} here and {list(theirs)} in the file",
                "name the base it was trained on with --base",
            )
    modules = {name for name, _ in base.named_modules()}
    absent = sorted(n for n in strange if ".lora_" in n and _module(n) not in modules)
    if absent:
        return (
            f"it changes modules that this base does not have ({_module(absent[0])})",
            "name its own base with --base",
        )
    return None
