"""The base of all settings: checks, allowed values, and values from YAML."""

from __future__ import annotations

import difflib
import math
import numbers
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any, Self

from m2pt_cli.errors import InputError, SettingsError
from m2pt_cli.settings.paths import located

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
# The parts that m2pt attn-map can show, and the suffixes of the files it writes.
ATTENTION_PARTS = ("language", "vision", "overlay", "prompts")
FIGURE_SUFFIXES = (".png", ".svg", ".pdf")
VALUES_SUFFIXES = (".npz", ".json")


# The largest integer that every library accepts; other numbers are limited to a million, as 32-bit floats.
MOST_WHOLE = 2**31 - 1
MOST_NUMBER = 1_000_000
# Larger than the width of any model, as a limit for prompts and rank.
MOST_PROMPTS = 65_536
_MOST_SEED, _MOST_THREADS = 2**32 - 1, 1_024
_MOST_DEVICES = 128


def closest(name: str, choices: Iterable[str]) -> str:
    """Return ``. Did you mean 'x'?`` with the closest of ``choices``, or an empty string."""
    near = difflib.get_close_matches(name, list(choices), n=1)
    return f". Did you mean {near[0]!r}?" if near else ""


def flag(name: str) -> str:
    """Return the flag of a setting: ``learning_rate`` -> ``--learning-rate``."""
    return "--" + name.replace("_", "-")


def raise_faults(faults: list[str], hint: str | None = None) -> None:
    """Raise one `SettingsError` that lists the faults, of more than 20 the first 20 and the total; nothing for none."""
    if not faults:
        return
    shown = "; ".join(faults[:20])
    more = f"; and {len(faults) - 20} more ({len(faults)} faults)" if len(faults) > 20 else ""
    raise SettingsError(shown + more, hint)


def repeated(names: Iterable[str]) -> list[str]:
    counts = Counter(names)
    return [name for name, count in counts.items() if count > 1]


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML mapping with ``safe_load``, so that it can't run code."""
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
    """Convert ``value`` to the annotated type of a setting; also from text, because YAML reads ``7e-4`` as text.

    Raises:
        TypeError, ValueError: the value does not fit the type.
    """
    if value is None and "None" in annotation:
        return None
    kind = plain_type(annotation)
    if kind.startswith("list of "):
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(convert(item, annotation.removeprefix("tuple[").split(",")[0]) for item in items)
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


def plain_type(annotation: str) -> str:
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
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def settings_section(content: dict[str, Any], file: Path) -> dict[str, Any]:
    # run.yaml has the settings under "settings", beside the versions; a hand-written file may have them at top level.
    return located(content, file) if isinstance(content.get("settings"), dict) else content


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of every command that runs a model."""

    base: str | None = None
    device: str | None = None
    dtype: str = "auto"
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        # Python callers may pass a path as text, or one value for a tuple; both are normalised here. Numbers stay as
        # they are: `faults` names those of a wrong type or size, unless a value of another kind stops it.
        wrong: list[str] = []
        can_be_checked = True
        for setting in fields(self):
            value, kind = getattr(self, setting.name), plain_type(str(setting.type))
            if kind in ("whole number", "number"):
                if value is not None and not _is_number(value, kind):
                    wrong.append(_wrong_type(setting, value))
                continue
            try:
                object.__setattr__(self, setting.name, convert(value, str(setting.type)))
            except (TypeError, ValueError):
                wrong.append(_wrong_type(setting, value))
                can_be_checked = False
        raise_faults(self.faults() if can_be_checked else wrong)

    def faults(self) -> list[str]:
        """Return every fault of these settings; each names the flag and the value."""
        faults: list[str] = []
        self.one_of(faults, "dtype", DTYPES)
        self.at_least(faults, 0, "seed", most=_MOST_SEED)
        self.at_least(faults, 1, "threads", most=_MOST_THREADS)
        if self.device is not None and not _is_device(self.device):
            faults.append(f"--device {self.device!r} is not cpu, cuda, cuda:N or mps")
        return faults

    def one_of(self, faults: list[str], name: str, choices: Iterable[str]) -> None:
        value = getattr(self, name)
        if value is not None and value not in choices:
            faults.append(f"{flag(name)} {value!r} is not one of {', '.join(choices)}{closest(str(value), choices)}")

    def at_least(self, faults: list[str], least: float, *names: str, most: float = MOST_WHOLE) -> None:
        """Add a fault for each of ``names`` that is not a number from ``least`` to ``most``."""
        for name in names:
            self._in_range(faults, name, f"must be at least {least}", lambda value: value >= least, most)

    def more_than(self, faults: list[str], bound: float, *names: str, most: float = MOST_NUMBER) -> None:
        """Add a fault for each of ``names`` that is not a number above ``bound`` and up to ``most``."""
        for name in names:
            self._in_range(faults, name, f"must be more than {bound}", lambda value: value > bound, most)

    def _in_range(
        self, faults: list[str], name: str, said: str, is_large_enough: Callable[[Any], bool], most: float
    ) -> None:
        value = getattr(self, name)
        if value is None:
            return
        kind = plain_type(str(next(f.type for f in fields(self) if f.name == name)))
        if not _is_number(value, kind):
            faults.append(f"{flag(name)} {value!r} is not a {kind}")
        elif value != value or value == math.inf or not is_large_enough(value):  # NaN equals nothing
            faults.append(f"{flag(name)} {shown_number(value)} {said}")
        elif value > most:
            faults.append(f"{flag(name)} {shown_number(value)} must be at most {most:,}")

    @classmethod
    def from_sources(cls, file: Path | None, flags: Mapping[str, Any]) -> Self:
        """Read settings from a YAML file, overridden by the flags that are not None.

        Raises:
            InputError: the file is missing or is not a YAML mapping.
            SettingsError: an unknown key (with the closest name), a wrong type or a bad value.
        """
        values = {} if file is None else settings_section(read_yaml(file), file)
        known = {f.name: f for f in fields(cls)}
        faults = [f"unknown key {key!r} in {file}{closest(key, known)}" for key in values if key not in known]
        values = {key: value for key, value in values.items() if key in known}
        values.update({key: value for key, value in flags.items() if value is not None and value != ()})
        converted: dict[str, Any] = {}
        for key, value in values.items():
            try:
                converted[key] = convert(value, str(known[key].type))
            except (TypeError, ValueError):
                faults.append(_wrong_type(known[key], value))
        raise_faults(faults)
        return cls(**converted)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for YAML and JSON; `from_sources` reads them back."""
        return {f.name: plain(getattr(self, f.name)) for f in fields(self)}


def _is_number(value: Any, kind: str) -> bool:
    return isinstance(value, numbers.Integral if kind == "whole number" else numbers.Real) and not isinstance(
        value, bool
    )


def _wrong_type(setting: Field[Any], value: Any) -> str:
    return f"{flag(setting.name)} {value!r} is not a {plain_type(str(setting.type))}"


def _is_device(name: str) -> bool:
    kind, _, index = name.partition(":")
    is_index = index.isascii() and index.isdigit() and len(index) <= 3 and int(index) < _MOST_DEVICES
    return kind in ("cpu", "cuda", "mps") and (not _ or is_index)


def shown_number(value: Any) -> str:
    """Format a number for a message; it may have more digits than the 4,300 that Python itself converts."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"of {value.bit_length():,} bits"
    return str(value)
