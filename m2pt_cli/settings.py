"""Frozen settings of each command, from YAML and flags, with every fault reported at once.

A value of None means "not said": `TrainSettings.resolve` fills it from the defaults of the base (the catalogue's, see
``m2pt_cli.bases.catalog``). This file imports no torch, so that a mistake in a flag costs no waiting.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from m2pt_cli.errors import InputError, SettingsError

METHODS = ("m2pt", "visual", "textual", "interaction", "lora", "full")
INTERACTIONS = ("auto", "projector", "residual", "none")
VISUAL_TOKENS = ("patches", "official")
INITS = ("xavier", "normal", "zeros")
DTYPES = ("auto", "float32", "bfloat16", "float16")
IMAGE_FITS = ("crop", "pad", "base")
REPORTERS = ("none", "tensorboard", "wandb", "trackio")
TEMPLATES = ("vicuna_v1", "llava_v1", "plain", "base")
WORDINGS = ("m2pt-1", "stored")
PROTOCOLS = ("official", "lmms-eval")


def closest(name: str, choices: Iterable[str]) -> str:
    """``. Did you mean 'x'?`` for the nearest of ``choices``, or an empty string."""
    near = difflib.get_close_matches(name, list(choices), n=1)
    return f". Did you mean {near[0]!r}?" if near else ""


def flag(name: str) -> str:
    """The flag of a setting: ``learning_rate`` -> ``--learning-rate``."""
    return "--" + name.replace("_", "-")


def raise_faults(faults: list[str], hint: str | None = None) -> None:
    """Raise one `SettingsError` that lists the first 20 faults and their number; nothing if there are none."""
    if not faults:
        return
    shown = "; ".join(faults[:20])
    more = f"; and {len(faults) - 20} more ({len(faults)} faults)" if len(faults) > 20 else ""
    raise SettingsError(shown + more, hint)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every command that runs a model takes."""

    base: str | None = None
    device: str | None = None
    dtype: str = "auto"
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        raise_faults(self.faults())

    def faults(self) -> list[str]:
        """Every fault of these settings, each naming the flag and the value."""
        faults: list[str] = []
        self.one_of(faults, "dtype", DTYPES)
        self.at_least(faults, 0, "seed")
        self.at_least(faults, 1, "threads")
        if self.device is not None and not _is_device(self.device):
            faults.append(f"--device {self.device!r} is not cpu, cuda, cuda:N or mps")
        return faults

    def one_of(self, faults: list[str], name: str, choices: Iterable[str]) -> None:
        value = getattr(self, name)
        if value is not None and value not in choices:
            faults.append(f"{flag(name)} {value!r} is not one of {', '.join(choices)}{closest(str(value), choices)}")

    def at_least(self, faults: list[str], least: float, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= least):
                faults.append(f"{flag(name)} {value} must be at least {least}")

    def more_than(self, faults: list[str], bound: float, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > bound):
                faults.append(f"{flag(name)} {value} must be more than {bound}")

    @classmethod
    def from_sources(cls, file: Path | None, flags: Mapping[str, Any]) -> Self:
        """Settings from a YAML file with the flags over it; a flag left at None does not override.

        Raises:
            InputError: the file is missing or is not a YAML mapping.
            SettingsError: an unknown key (with the closest name), a wrong type or a bad value.
        """
        values = {} if file is None else _settings_section(read_yaml(file))
        known = {f.name: f for f in fields(cls)}
        faults = [f"unknown key {key!r} in {file}{closest(key, known)}" for key in values if key not in known]
        values = {key: value for key, value in values.items() if key in known}
        values.update({key: value for key, value in flags.items() if value is not None and value != ()})
        converted: dict[str, Any] = {}
        for key, value in values.items():
            try:
                converted[key] = convert(value, str(known[key].type))
            except (TypeError, ValueError):
                faults.append(f"{flag(key)} {value!r} is not a {_plain_type(str(known[key].type))}")
        raise_faults(faults)
        return cls(**converted)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML and JSON; `from_sources` reads them back."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Settings):
    """Settings of ``m2pt train``; names are the flags' with underscores."""

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
            faults.append("--data is missing: name a source, a file or a Hub data set")
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
        self.at_least(faults, 0, "visual_prompts", "textual_prompts", "weight_decay", "warmup", "workers")
        self.at_least(faults, 1, "limit", "max_steps", "batch_size", "accumulation", "lora_rank", "keep", "save_steps")
        self.at_least(faults, 8, "max_length")
        self.more_than(faults, 0, "epochs", "learning_rate", "visual_lr", "textual_lr", "interaction_lr")
        if self.warmup is not None and self.warmup > 1:
            faults.append(f"--warmup {self.warmup} is a share of all steps and must be at most 1")
        if self.resume and self.overwrite:
            faults.append("--resume and --overwrite exclude each other")
        share = _number(self.validation)
        if share is not None and not 0 < share < 1:
            faults.append(f"--validation {self.validation} is not a share between 0 and 1, nor a file")
        is_bare = self.method == "interaction" or (
            self.method == "m2pt" and self.visual_prompts == self.textual_prompts == 0
        )
        if is_bare and self.interaction == "none" and not self.train_lm_head:
            faults.append(f"--method {self.method} with no prompts and --interaction none trains nothing")
        for kind in ("visual", "textual"):
            count = getattr(self, f"{kind}_prompts")
            if self.method == kind and count == 0:
                faults.append(f"--method {kind} with --{kind}-prompts 0 trains no prompt")
            if count and self.method in METHODS and self.method not in ("m2pt", kind):
                faults.append(f"--{kind}-prompts {count}: --method {self.method} has no {kind} prompts")
        return faults

    def resolve(self, defaults: Mapping[str, Any]) -> Self:
        """These settings with every None that ``defaults`` names filled in."""
        known = {f.name for f in fields(self)}
        filled = {key: value for key, value in defaults.items() if key in known and getattr(self, key) is None}
        return dataclasses.replace(self, **filled)


@dataclass(frozen=True, kw_only=True)
class InferSettings(Settings):
    """Settings of ``m2pt infer``."""

    adapter: tuple[str, ...] = ()
    template: str | None = None
    image_fit: str | None = None
    max_new_tokens: int = 64
    temperature: float = 0.0
    num_beams: int = 1
    allow_url: bool = False

    def faults(self) -> list[str]:
        faults = super().faults()
        faults += [f"--adapter {name!r} is given twice" for name in _repeated(self.adapter)]
        self.one_of(faults, "template", TEMPLATES)
        self.one_of(faults, "image_fit", IMAGE_FITS)
        self.at_least(faults, 1, "max_new_tokens", "num_beams")
        self.at_least(faults, 0, "temperature")
        if self.temperature > 0 and self.num_beams > 1:
            faults.append("--temperature samples and --num-beams searches: use one of them")
        return faults


@dataclass(frozen=True, kw_only=True)
class EvalSettings(Settings):
    """Settings of ``m2pt eval``."""

    bench: tuple[str, ...] = ()
    adapter: tuple[str, ...] = ()
    predictions: Path | None = None
    source: str | None = None
    images: tuple[Path, ...] = ()
    template: str | None = None
    image_fit: str | None = None
    wording: str = "m2pt-1"
    protocol: str = "official"
    ocr: bool = False
    limit: int | None = None
    shuffle_images: bool = False
    max_new_tokens: int | None = None
    batch_tokens: int | None = None
    allow_url: bool = False
    judge: str | None = None
    output_dir: Path | None = None
    overwrite: bool = False

    def faults(self) -> list[str]:
        faults = super().faults()
        if not self.bench:
            faults.append("--bench is missing: name a benchmark, such as --bench demo")
        self.one_of(faults, "template", TEMPLATES)
        self.one_of(faults, "image_fit", IMAGE_FITS)
        self.one_of(faults, "wording", WORDINGS)
        self.one_of(faults, "protocol", PROTOCOLS)
        self.at_least(faults, 1, "limit", "max_new_tokens", "batch_tokens")
        if self.predictions is not None and len(self.bench) > 1:
            faults.append("--predictions scores one benchmark: give --bench once")
        faults += [f"--adapter {name!r} is given twice" for name in _repeated(self.adapter)]
        return faults


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML mapping, read with ``safe_load``: nothing in it can run code."""
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{file} can't be read: {getattr(error, 'strerror', None) or error}", "check the path given to --config"
        ) from None
    except yaml.YAMLError as error:
        raise InputError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{file} holds no settings: a mapping of 'key: value' lines was expected")
    return content


def convert(value: Any, annotation: str) -> Any:
    """``value`` as the annotated type of a setting; YAML reads ``7e-4`` as text, so numbers are parsed from text too.

    Raises:
        TypeError, ValueError: the value does not fit the type.
    """
    if value is None and "None" in annotation:
        return None
    kind = _plain_type(annotation)
    if kind.startswith("list of "):
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(Path(item) if kind.endswith("path") else _text(item) for item in items)
    if kind == "switch":
        if not isinstance(value, bool):
            raise TypeError(value)
        return value
    if isinstance(value, bool):
        raise TypeError(value)
    if kind == "whole number":
        if isinstance(value, float) and not value.is_integer():
            raise ValueError(value)
        return int(value)
    if kind == "number":
        return float(value)
    return Path(value) if kind == "path" else _text(value)


def _plain_type(annotation: str) -> str:
    base = annotation.replace(" | None", "")
    names = {"int": "whole number", "float": "number", "bool": "switch", "Path": "path", "str": "text"}
    if base.startswith("tuple["):
        return "list of " + names[base.removeprefix("tuple[").split(",")[0]]
    return names[base]


def _text(value: Any) -> str:
    if not isinstance(value, (str, int, float, Path)):
        raise TypeError(value)
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _repeated(names: Iterable[str]) -> list[str]:
    counts = Counter(names)
    return [name for name, count in counts.items() if count > 1]


def _settings_section(content: dict[str, Any]) -> dict[str, Any]:
    # run.yaml keeps the settings under "settings", beside the versions; a hand-written file may hold them bare.
    section = content.get("settings", content)
    return section if isinstance(section, dict) else content


def _is_device(name: str) -> bool:
    kind, _, index = name.partition(":")
    return kind in ("cpu", "cuda", "mps") and (not _ or index.isdigit())
