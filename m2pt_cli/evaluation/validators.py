"""Column validators for benchmark data: each returns None for a valid value, else what was expected."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from m2pt_cli.data.sample import holds_no_character
from m2pt_cli.evaluation.answer_parsing import exact_yes_or_no
from m2pt_cli.evaluation.normal_form import is_blank

Check = Callable[[Any], str | None]

_LONGEST = 40


def text(value: Any) -> str | None:
    """Require a non-empty text of valid Unicode."""
    if not isinstance(value, str):
        return "a text"
    if not value.strip():
        return "a text that is not empty"
    return "whole characters" if holds_no_character(value) else None


def identifier(value: Any) -> str | None:
    """Require a text or an integer."""
    return None if _is_whole(value) or text(value) is None else "a text or a number"


def texts(value: Any) -> str | None:
    """Require a non-empty list of texts."""
    good = isinstance(value, list) and value and all(isinstance(one, str) for one in value)
    return None if good else "a list of texts"


def tokens(value: Any) -> str | None:
    """Require a list of texts, which may be empty."""
    return None if value == [] else texts(value)


def answer(value: Any) -> str | None:
    """Require a text or a number, or a list of accepted ones; none may be blank."""
    many = value if isinstance(value, list) else [value]
    good = many and all(isinstance(one, (str, int)) or (isinstance(one, float) and math.isfinite(one)) for one in many)
    if not good:
        return "a text, or a list of accepted ones"
    return "an answer that is not blank" if any(isinstance(one, str) and is_blank(one) for one in many) else None


# How many people have answered each question of TextVQA: its soft accuracy is a mean over them.
ANNOTATORS = 10


def annotators(value: Any) -> str | None:
    """Require a list of ten texts, one per annotator; none may be blank (as in the test split)."""
    if texts(value) is not None or len(value) != ANNOTATORS:
        return f"a list of {ANNOTATORS} texts, the annotators' answers,"
    blank = sum(is_blank(one) for one in value)
    return f"{ANNOTATORS} answers of which none is blank ({blank} are)" if blank else None


def read_by(read: Callable[[Any], object], wanted: str) -> Check:
    """Return a check that the value is parsed by ``read``, which returns None for invalid values."""
    return lambda value: wanted if read(value) is None else None


def yes_or_no(value: Any) -> str | None:
    """Require yes or no, in any case, with or without a full stop."""
    return None if isinstance(value, str) and exact_yes_or_no(value) is not None else "yes or no"


def one_of(*choices: str | int) -> Check:
    """Return a check for one of these texts or integers."""

    def check(value: Any) -> str | None:
        good = (isinstance(value, str) or _is_whole(value)) and value in choices
        return None if good else f"one of {few(choices)}"

    return check


def label(count: int) -> Check:
    """Return a check for a class index below ``count``."""
    return lambda value: None if _is_whole(value) and 0 <= value < count else f"a number from 0 to {count - 1}"


def faults(row: Mapping[str, Any], checks: Mapping[str, Check]) -> list[str]:
    """Return a message for each invalid cell: column, value, what was expected. Absent cells are skipped."""
    found = [(name, check(row[name])) for name, check in checks.items() if name in row]
    return [f"{name} is {shown(row[name])}, {wanted} was expected" for name, wanted in found if wanted is not None]


def several(found: list[str]) -> str:
    """Join messages into one line, at most 20 of them."""
    return "; ".join(found[:20]) + (f"; and {len(found) - 20} more" if len(found) > 20 else "")


def few(choices: Sequence[object]) -> str:
    """List choices for a message: all if there are at most six, else the first five."""
    shown = choices if len(choices) <= 6 else [*choices[:5], "…"]
    return ", ".join(str(choice) for choice in shown)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """Return a cell's value for a message: printable ASCII, at most 40 characters."""
    shown = ascii(value)
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"
