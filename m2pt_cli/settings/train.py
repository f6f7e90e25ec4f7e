"""Settings of ``m2pt train``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from m2pt_cli.settings.base import (
    IMAGE_FITS,
    INITS,
    INTERACTIONS,
    METHODS,
    MOST_NUMBER,
    MOST_PROMPTS,
    MOST_WHOLE,
    REPORTERS,
    TEMPLATES,
    VISUAL_TOKENS,
    Settings,
    closest,
)

_MOST_WORKERS = 1_024  # more processes than a machine has cores


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Settings):
    """Settings of ``m2pt train``; the field names are the flags with underscores."""

    data: tuple[str, ...] = ()
    images: tuple[Path, ...] = ()
    limit: int | None = None
    method: str = "m2pt"
    visual_prompts: int | None = None
    textual_prompts: int | None = None
    interaction: str = "auto"
    visual_tokens: str = "patches"
    train_lm_head: bool = False
    init: str = "xavier"
    lora_rank: int = 16
    epochs: float | None = None
    max_steps: int | None = None
    batch_size: int | None = None
    accumulation: int | None = None
    learning_rate: float | None = None
    visual_lr: float | None = None
    textual_lr: float | None = None
    interaction_lr: float | None = None
    warmup: float | None = None
    weight_decay: float | None = None
    max_length: int | None = None
    template: str | None = None
    image_fit: str | None = None
    validation: str | None = None
    save_steps: int | None = None
    keep: int | None = None
    gradient_checkpointing: bool | None = None
    report_to: tuple[str, ...] = ()
    workers: int | None = None
    skip_bad: bool = False
    allow_url: bool = False
    output_dir: Path | None = None
    resume: bool = False
    overwrite: bool = False

    def faults(self) -> list[str]:
        faults = super().faults()
        if not self.data:
            none = f": {self.output_dir or 'runs'} holds no run to take it from" if self.resume else ""
            faults.append(f"--data is missing{none or ': name a source, a file or a Hub data set'}")
        self.one_of(faults, "method", METHODS)
        self.one_of(faults, "interaction", INTERACTIONS)
        self.one_of(faults, "visual_tokens", VISUAL_TOKENS)
        self.one_of(faults, "init", INITS)
        self.one_of(faults, "template", TEMPLATES)
        self.one_of(faults, "image_fit", IMAGE_FITS)
        faults += [
            f"--report-to {name!r} is not one of {', '.join(REPORTERS)}{closest(name, REPORTERS)}"
            for name in self.report_to
            if name not in REPORTERS
        ]
        self.at_least(faults, 0, "visual_prompts", "textual_prompts", most=MOST_PROMPTS)
        self.at_least(faults, 0, "weight_decay", most=MOST_NUMBER)
        self.at_least(faults, 0, "workers", most=_MOST_WORKERS)
        self.at_least(faults, 0, "warmup")
        self.at_least(faults, 1, "lora_rank", most=MOST_PROMPTS)
        self.at_least(faults, 1, "limit", "max_steps", "batch_size", "accumulation", "keep", "save_steps")
        self.at_least(faults, 8, "max_length")
        self.more_than(faults, 0, "epochs", "learning_rate", "visual_lr", "textual_lr", "interaction_lr")
        if isinstance(self.warmup, (int, float)) and 1 < self.warmup <= MOST_WHOLE:
            faults.append(f"--warmup {self.warmup} is a share of all steps and must be at most 1")
        if self.resume and self.overwrite:
            faults.append("--resume and --overwrite exclude each other")
        fraction = _number(self.validation)
        if fraction is not None and not 0 < fraction < 1:
            faults.append(f"--validation {self.validation} is not a share between 0 and 1, nor a file")
        is_bare = self.method == "interaction" or (
            self.method == "m2pt" and self.visual_prompts == self.textual_prompts == 0
        )
        if is_bare and self.interaction == "none" and not self.train_lm_head:
            faults.append(f"--method {self.method} with no prompts and --interaction none trains nothing")
        for modality in ("visual", "textual"):
            count = getattr(self, f"{modality}_prompts")
            if self.method == modality and count == 0:
                faults.append(f"--method {modality} with --{modality}-prompts 0 trains no prompt")
            if count and self.method in METHODS and self.method not in ("m2pt", modality):
                faults.append(f"--{modality}-prompts {count}: --method {self.method} has no {modality} prompts")
        return faults

    def resolve(self, defaults: Mapping[str, Any]) -> Self:
        """Return these settings with each None replaced by the value in ``defaults``, if it has one."""
        known = {f.name for f in fields(self)}
        filled = {key: value for key, value in defaults.items() if key in known and getattr(self, key) is None}
        return dataclasses.replace(self, **filled)


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
