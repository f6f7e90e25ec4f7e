"""What every command that runs a model takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from m2pt_cli.settings.choices import DTYPES, closest, flag, raise_faults
from m2pt_cli.settings.values import convert, plain, plain_type, read_yaml, settings_section


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
        """Plain values for YAML and JSON; `from_sources` reads them back."""
        return {f.name: plain(getattr(self, f.name)) for f in fields(self)}


def _is_device(name: str) -> bool:
    kind, _, index = name.partition(":")
    return kind in ("cpu", "cuda", "mps") and (not _ or index.isdigit())
