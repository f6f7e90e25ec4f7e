"""Defines which parameters are trained, counted and saved, and to which part of the method each belongs.

`adapter_of` decides all three: a parameter that belongs to an adapter is trained while that adapter is active, is
counted, and is saved in the adapter's file; every other parameter is frozen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from m2pt_cli.families.family import Family, family_of
from m2pt_cli.method.config import LM_HEAD, M2PTConfig

PARTS = ("visual_prompts", "textual_prompts", "interaction", "lm_head", "vision_tower", "projector", "language_model")

# m2pt_prompts.<adapter>, m2pt_interaction.<adapter>.weight, modules_to_save.<adapter>.weight, lora_A.<adapter>.weight
_OWNED = re.compile(r"\.(?:m2pt_prompts|m2pt_interaction|modules_to_save|lora_[AB])\.(?P<adapter>[^.]+)(?:\.|$)")


def adapter_of(name: str) -> str | None:
    """Return the adapter that a parameter belongs to, by the parameter's name; None for the base."""
    match = _OWNED.search(name)
    return None if match is None else match["adapter"]


def adapter_parameters(model: nn.Module, adapter_name: str) -> Iterator[tuple[str, nn.Parameter]]:
    """Iterate over names and parameters of one adapter, M²PT or LoRA."""
    return ((name, p) for name, p in model.named_parameters() if adapter_of(name) == adapter_name)


def part_of(name: str, family: Family, *, is_prompted: bool) -> str:
    """The part, one of `PARTS`, of a parameter.

    Args:
        name: its name in the model.
        family: of the model.
        is_prompted: it is trained by M²PT, whose trained projector is the interaction layer.
    """
    name = f".{name}"
    is_visual = f".{family.vision.path}." in name
    if "m2pt_prompts" in name:
        return "visual_prompts" if is_visual else "textual_prompts"
    if f".{family.projector}." in name:
        return "interaction" if is_prompted and adapter_of(name) is not None else "projector"
    if f".{LM_HEAD}." in name:
        return "lm_head"
    return "vision_tower" if is_visual else "language_model"


def parts_of(model: Any) -> dict[str, str]:
    """Return the part of every trained parameter, by name: for counts and for learning rates per part.

    Args:
        model: a PEFT model (M²PT or LoRA), or a base some of whose parameters are trained.
    """
    family = family_of(model.config.model_type)
    configs = getattr(model, "peft_config", {}).values()
    is_prompted = any(isinstance(config, M2PTConfig) for config in configs)
    return {
        name: part_of(name, family, is_prompted=is_prompted) for name, p in model.named_parameters() if p.requires_grad
    }


def select_full(model: Any) -> None:
    """Prepare a bare base for full fine-tuning as LLaVA does it: projector, language model and head, tower frozen."""
    family = family_of(model.config.model_type)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name, family, is_prompted=False) != "vision_tower")
