"""Column validators for benchmark data.

A validator returns None for a valid value, else a description of what was expected. Bad rows are reported before
inference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from m2pt_cli.data.sample import holds_no_character

Check = Callable[[Any], str | None]

_MAX_SHOWN = 40


def text(value: Any) -> str | None:
    """Accept a text that is not empty and has no unpaired surrogates."""
    if not isinstance(value, str):
        return "a text"
    if not value.strip():
        return "a text that is not empty"
    return "whole characters" if holds_no_character(value) else None


def identifier(value: Any) -> str | None:
    """Accept a text or an integer."""
    return None if _is_integer(value) or text(value) is None else "a text or a number"


def texts(value: Any) -> str | None:
    """Accept a list of at least one text."""
    good = isinstance(value, list) and value and all(isinstance(one, str) for one in value)
    return None if good else "a list of texts"


def tokens(value: Any) -> str | None:
    """Accept a list of texts, which may be empty."""
    return None if value == [] else texts(value)


def answer(value: Any) -> str | None:
    """Accept a text or a finite number, or a list of at least one of them."""
    many = value if isinstance(value, list) else [value]
    good = many and all(isinstance(one, (str, int)) or (isinstance(one, float) and math.isfinite(one)) for one in many)
    return None if good else "a text, or a list of accepted ones"


def yes_or_no(value: Any) -> str | None:
    """Accept yes or no, in upper or lower case, with or without a full stop."""
    good = isinstance(value, str) and value.strip().rstrip(".").lower() in ("yes", "no")
    return None if good else "yes or no"


def one_of(*choices: str | int) -> Check:
    """Return a validator that accepts one of ``choices``."""

    def check(value: Any) -> str | None:
        good = (isinstance(value, str) or _is_integer(value)) and value in choices
        return None if good else f"one of {', '.join(str(choice) for choice in choices)}"

    return check


def label(count: int) -> Check:
    """Return a validator that accepts a class index, 0 to ``count - 1``."""
    return lambda value: None if _is_integer(value) and 0 <= value < count else f"a number from 0 to {count - 1}"


def faults(row: Mapping[str, Any], checks: Mapping[str, Check]) -> list[str]:
    """Describe every invalid value of a row: its column, the value, what was expected. Missing columns are ignored."""
    found = [(name, check(row[name])) for name, check in checks.items() if name in row]
    return [f"{name} is {_shown(row[name])}, {wanted} was expected" for name, wanted in found if wanted is not None]


def several(found: list[str]) -> str:
    """Join faults to one line, 20 at most."""
    return "; ".join(found[:20]) + (f"; and {len(found) - 20} more" if len(found) > 20 else "")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    shown = ascii(value)
    return shown if len(shown) <= _MAX_SHOWN else shown[: _MAX_SHOWN - 1] + "…"
