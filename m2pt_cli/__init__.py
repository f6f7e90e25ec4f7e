"""m2pt: multimodal prompt tuning (M²PT) of LLaVA models.

Importing the package does not import torch. Accessing a public name imports the module that defines it and registers
``M2PT`` with PEFT::

    from m2pt_cli import M2PTConfig
    from peft import get_peft_model

    model = get_peft_model(llava, M2PTConfig(num_visual_prompts=20, num_textual_prompts=10))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from m2pt_cli.version import __version__

if TYPE_CHECKING:
    from m2pt_cli.api import answer, attention_map, evaluate, load, train
    from m2pt_cli.cli.progress import show_progress
    from m2pt_cli.method import M2PTConfig, M2PTModel
    from m2pt_cli.settings import AttnMapSettings, EvalSettings, TrainSettings

# public name -> the module that defines it
_EXPORTS = {
    "M2PTConfig": "m2pt_cli.method",
    "M2PTModel": "m2pt_cli.method",
    "load": "m2pt_cli.api",
    "answer": "m2pt_cli.api",
    "train": "m2pt_cli.api",
    "evaluate": "m2pt_cli.api",
    "attention_map": "m2pt_cli.api",
    "show_progress": "m2pt_cli.cli.progress",
    "AttnMapSettings": "m2pt_cli.settings",
    "TrainSettings": "m2pt_cli.settings",
    "EvalSettings": "m2pt_cli.settings",
}

__all__ = [
    "AttnMapSettings",
    "EvalSettings",
    "M2PTConfig",
    "M2PTModel",
    "TrainSettings",
    "__version__",
    "answer",
    "attention_map",
    "evaluate",
    "load",
    "show_progress",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'm2pt_cli' has no attribute {name!r}")
    # Any public name registers the method, so that PEFT can read an M²PT adapter afterwards.
    import_module("m2pt_cli.method")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
