"""Common to all settings: validation, allowed values, and conversion of YAML values."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from m2pt_cli.errors import InputError, SettingsError

METHODS = ("m2pt", "visual", "textual", "interaction", "lora", "full")
INTERACTIONS = ("auto", "projector", "residual", "mean", "none")
VISUAL_TOKENS = ("patches", "official")
INITS = ("xavier", "normal", "zeros")
DTYPES = ("auto", "float32", "bfloat16", "float16")
IMAGE_FITS = ("crop", "pad", "base")
REPORTERS = ("none", "tensorboard", "wandb", "trackio")
TEMPLATES = ("vicuna_v1", "llava_v1", "plain", "base")
WORDINGS = ("m2pt-1", "stored")
PROTOCOLS = ("official", "lmms-eval")
# What m2pt attn-map analyses, and the file types it writes.
ATTENTION_PARTS = ("language", "vision", "overlay", "prompts")
FIGURE_SUFFIXES = (".png", ".svg", ".pdf")
VALUES_SUFFIXES = (".npz", ".json")


def closest(name: str, choices: Iterable[str]) -> str:
    """Return ``. Did you mean 'x'?`` for the nearest of ``choices``, or an empty string."""
    near = difflib.get_close_matches(name, list(choices), n=1)
    return f". Did you mean {near[0]!r}?" if near else ""


def flag(name: str) -> str:
    """Return the flag of a setting: ``learning_rate`` -> ``--learning-rate``."""
    return "--" + name.replace("_", "-")


def raise_faults(faults: list[str], hint: str | None = None) -> None:
    """Raise one `SettingsError` with the first 20 faults and their number; do nothing if there are none."""
    if not faults:
        return
    shown = "; ".join(faults[:20])
    more = f"; and {len(faults) - 20} more ({len(faults)} faults)" if len(faults) > 20 else ""
    raise SettingsError(shown + more, hint)


def repeated(names: Iterable[str]) -> list[str]:
    """Return the names that occur more than once."""
    counts = Counter(names)
    return [name for name, count in counts.items() if count > 1]


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML mapping with ``safe_load``, so that nothing in it can run code.

    Raises:
        InputError: the file can't be read, or is not a YAML mapping.
    """
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
    """Convert ``value`` to a setting's annotated type; numbers also from text, since YAML reads ``7e-4`` as text.

    Raises:
        TypeError, ValueError: the value does not fit the type.
    """
    if value is None and "None" in annotation:
        return None
    type_name = plain_type(annotation)
    if type_name.startswith("list of "):
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(Path(item) if type_name.endswith("path") else _text(item) for item in items)
    if type_name == "switch":
        if not isinstance(value, bool):
            raise TypeError(value)
        return value
    if isinstance(value, bool):
        raise TypeError(value)
    if type_name == "whole number":
        if isinstance(value, float) and not value.is_integer():
            raise ValueError(value)
        return int(value)
    if type_name == "number":
        return float(value)
    return Path(value) if type_name == "path" else _text(value)


def plain_type(annotation: str) -> str:
    """Return the name of an annotated type for error messages, such as ``whole number``."""
    base = annotation.replace(" | None", "")
    names = {"int": "whole number", "float": "number", "bool": "switch", "Path": "path", "str": "text"}
    if base.startswith("tuple["):
        return "list of " + names[base.removeprefix("tuple[").split(",")[0]]
    return names[base]


def _text(value: Any) -> str:
    if not isinstance(value, (str, int, float, Path)):
        raise TypeError(value)
    return str(value)


def plain(value: Any) -> Any:
    """Convert tuples to lists and paths to text, for YAML and JSON."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def settings_section(content: dict[str, Any]) -> dict[str, Any]:
    # run.yaml has the settings under "settings", next to the versions; a hand-written file may have them at top level.
    section = content.get("settings", content)
    return section if isinstance(section, dict) else content


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of every command that runs a model."""

    base: str | None = None
    device: str | None = None
    dtype: str = "auto"
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        raise_faults(self.faults())

    def faults(self) -> list[str]:
        """Return every invalid value, as a message that names the flag and the value."""
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
        """Read settings from a YAML file and override them with flags; a flag that is None does not override.

        Raises:
            InputError: the file is missing or is not a YAML mapping.
            SettingsError: an unknown key (with the closest name), a wrong type or a bad value.
        """
        values = {} if file is None else settings_section(read_yaml(file))
        known = {f.name: f for f in fields(cls)}
        faults = [f"unknown key {key!r} in {file}{closest(key, known)}" for key in values if key not in known]
        values = {key: value for key, value in values.items() if key in known}
        values.update({key: value for key, value in flags.items() if value is not None and value != ()})
        converted: dict[str, Any] = {}
        for key, value in values.items():
            try:
                converted[key] = convert(value, str(known[key].type))
            except (TypeError, ValueError):
                faults.append(f"{flag(key)} {value!r} is not a {plain_type(str(known[key].type))}")
        raise_faults(faults)
        return cls(**converted)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for YAML and JSON; `from_sources` reads them back."""
        return {f.name: plain(getattr(self, f.name)) for f in fields(self)}


def _is_device(name: str) -> bool:
    device_type, colon, index = name.partition(":")
    return device_type in ("cpu", "cuda", "mps") and (not colon or index.isdigit())
