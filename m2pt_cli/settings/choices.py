"""The names that a setting may have, and how a fault of a setting is said."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable

from m2pt_cli.errors import SettingsError

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
# What m2pt attn-map looks at, and the files it writes.
ATTENTION_PARTS = ("language", "vision", "overlay", "prompts")
FIGURE_SUFFIXES = (".png", ".svg", ".pdf")
VALUES_SUFFIXES = (".npz", ".json")


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


def repeated(names: Iterable[str]) -> list[str]:
    counts = Counter(names)
    return [name for name, count in counts.items() if count > 1]
