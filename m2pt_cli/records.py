"""The results of the core: the shapes that ``--json`` prints and that scripts rely on."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any


def to_json(value: Any) -> Any:
    """Plain JSON values: dataclasses as mappings, paths as text, NaN and infinities as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)


def format_bytes(count: float) -> str:
    """A size for a person, in powers of 1000: ``24.0 MB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


@dataclass(frozen=True)
class ParameterCounts:
    """``m2pt count-params``: parameters trained, by group.

    ``total`` is the base alone, ``percent`` = 100 * trainable / total, ``without_effect`` the trained parameters that
    influence nothing (the last vision layer's prompts with ``visual_tokens="patches"``), ``bytes`` the saved adapter.
    """

    base: str
    method: str
    total: int
    trainable: int
    percent: float
    groups: dict[str, int]
    without_effect: int
    bytes: int


@dataclass(frozen=True)
class ImportResult:
    """``m2pt import``: what was written. Of a base, ``visual_prompts``, ``textual_prompts`` and ``lm_head`` are null.

    ``trainable`` is the number of an adapter's values (of a base: of all its weights), ``lm_head`` whether it has an
    output head of its own, ``bytes`` the size of the weights.
    """

    output_dir: str
    kind: str
    base: str
    visual_prompts: int | None
    textual_prompts: int | None
    lm_head: bool | None
    trainable: int
    bytes: int


@dataclass(frozen=True)
class TrainResult:
    """``m2pt train``: one document at the end. ``seconds`` is wall time, ``bytes`` the size of the saved adapter."""

    output_dir: str
    method: str
    base: str
    steps: int
    loss: float | None
    validation: float | None
    trainable: int
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Answer:
    """One answered question of ``m2pt infer``; ``extra`` holds the input line's unknown keys, kept in the output."""

    id: Any
    image: Any
    question: Any
    adapter: str | None
    answer: str | None
    error: str | None
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """``{"id", "image", "question", "adapter", "answer", "error"}`` and the kept keys."""
        fixed = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "extra"}
        return {**{k: v for k, v in self.extra.items() if k not in fixed}, **fixed}
