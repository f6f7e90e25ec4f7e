"""Which parameters are trained, counted and saved, and the part of the method each belongs to.

`adapter_of` is the one predicate: what it gives to an adapter is trained while that adapter is active, is counted, and
is in the adapter's file; everything else is frozen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from m2pt_cli.method.config import LM_HEAD, PROJECTOR, M2PTConfig

PARTS = ("visual_prompts", "textual_prompts", "interaction", "lm_head", "vision_tower", "projector", "language_model")

# m2pt_prompts.<adapter>, m2pt_interaction.<adapter>.weight, modules_to_save.<adapter>.weight, lora_A.<adapter>.weight
_OWNED = re.compile(r"\.(?:m2pt_prompts|m2pt_interaction|modules_to_save|lora_[AB])\.(?P<adapter>[^.]+)(?:\.|$)")


def adapter_of(name: str) -> str | None:
    """The adapter that the parameter of this name belongs to, None for those of the base."""
    match = _OWNED.search(name)
    return None if match is None else match["adapter"]


def adapter_parameters(model: nn.Module, adapter_name: str) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters of one adapter, M²PT or LoRA."""
    return ((name, p) for name, p in model.named_parameters() if adapter_of(name) == adapter_name)


def part_of(name: str, *, is_prompted: bool) -> str:
    """The part, one of `PARTS`, of a parameter.

    Args:
        name: its name in the model.
        is_prompted: it is trained by M²PT, whose trained projector is the interaction layer.
    """
    if "m2pt_prompts" in name:
        return "visual_prompts" if ".vision_tower." in name else "textual_prompts"
    if PROJECTOR in name:
        return "interaction" if is_prompted and adapter_of(name) is not None else "projector"
    if f"{LM_HEAD}." in name:
        return "lm_head"
    if ".vision_tower." in f".{name}":
        return "vision_tower"
    return "language_model"


def parts_of(model: Any) -> dict[str, str]:
    """The part of every trained parameter, by name: for counts, and for a learning rate of each part's own.

    Args:
        model: a PEFT model (M²PT or LoRA), or a LLaVA some of whose parameters are trained.
    """
    configs = getattr(model, "peft_config", {}).values()
    is_prompted = any(isinstance(config, M2PTConfig) for config in configs)
    return {name: part_of(name, is_prompted=is_prompted) for name, p in model.named_parameters() if p.requires_grad}


def select_full(model: nn.Module) -> None:
    """Prepare a bare LLaVA for full fine-tuning as LLaVA does it: projector, language model and head, tower frozen."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name, is_prompted=False) != "vision_tower")
