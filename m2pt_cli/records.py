"""Results of the commands: the fields that ``--json`` prints and that scripts rely on."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any


def to_json(value: Any) -> Any:
    """Convert to plain JSON values: dataclasses to mappings, paths to text, NaN and infinities to null."""
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
    """Result of ``m2pt count-params``: trained parameters, by group.

    ``total`` counts the base alone, ``percent`` = 100 * trainable / total, ``without_effect`` counts trained parameters
    that never influence the output (the last vision layer's prompts with ``visual_tokens="patches"``), ``bytes`` is the
    size of the saved adapter.
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
    """Result of ``m2pt import``. For a base, ``visual_prompts``, ``textual_prompts`` and ``lm_head`` are null.

    ``trainable`` is the number of values of an adapter, or of all weights of a base; ``lm_head`` tells whether the
    adapter has its own output head; ``bytes`` is the size of the weights.
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
    """Result of ``m2pt train``, printed once at the end. ``seconds`` is wall time, ``bytes`` the adapter's size."""

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
    """One question of ``m2pt infer``; ``extra`` holds the unknown keys of the input line, which the output keeps."""

    id: Any
    image: Any
    question: Any
    adapter: str | None
    answer: str | None
    error: str | None
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """``{"id", "image", "question", "adapter", "answer", "error"}`` plus the keys in ``extra``."""
        fixed = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "extra"}
        return {**{k: v for k, v in self.extra.items() if k not in fixed}, **fixed}
