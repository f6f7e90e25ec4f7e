"""Validate the references of predictions made elsewhere, and convert them to the form used in data sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from m2pt_cli.errors import InputError
from m2pt_cli.evaluation import validators
from m2pt_cli.evaluation.task import Prediction, Task


def with_references(bench: Task, rows: Mapping[str, Prediction], file: Path) -> dict[str, Prediction]:
    """Return the rows with references in the benchmark's normal form (``Yes.`` becomes ``yes``).

    Args:
        bench: the benchmark that was asked.
        rows: rows by their place in the file (``line 3``).
        file: named in errors.

    Raises:
        InputError: references that are blank or that the benchmark does not have, or rows of another benchmark;
            20 of them are named.
    """
    checked: dict[str, Prediction] = {}
    faults: dict[str, list[str]] = {}
    for place, row in rows.items():
        try:
            if (wanted := validators.answer(row.answer)) is not None:
                raise ValueError(f"answer is {validators.shown(row.answer)}, {wanted} was expected")
            checked[place] = dataclasses.replace(row, answer=bench.reference(row))
        except ValueError as fault:
            faults.setdefault(str(fault), []).append(place)
    if faults:
        listed = validators.several([f"{_shown_places(places)}: {fault}" for fault, places in faults.items()])
        raise InputError(
            f"{file} does not hold answers to {bench.name}: {listed}",
            "name the benchmark that was asked with --bench, and give the references its data set has",
        )
    return checked


def _shown_places(places: Sequence[str]) -> str:
    """The first places of a fault, and how many more there are."""
    return ", ".join(places[:3]) + (f" and {len(places) - 3:,} more" if len(places) > 3 else "")


def one_text(row: Prediction) -> str:
    """Return the single reference of a row; a list of equal references counts as one.

    Raises:
        ValueError: a list of several.
    """
    answers = [row.answer] if isinstance(row.answer, str) else row.answer
    if len(set(answers)) != 1:
        raise ValueError(f"answer is {validators.shown(row.answer)}, one text was expected")
    return answers[0]


def read_reference(row: Prediction, read: Callable[[str], str | None], wanted: str) -> str:
    """Return the reference parsed by ``read``.

    Raises:
        ValueError: ``read`` returns None.
    """
    text = one_text(row)
    found = read(text)
    if found is None:
        raise ValueError(f"answer is {validators.shown(text)}, {wanted} was expected")
    return found


def require_category(row: Prediction, categories: Collection[str]) -> None:
    """Check the category of a row, which scores are made of.

    Raises:
        ValueError: it is none of these.
    """
    if row.category not in categories:
        known = validators.few(list(categories))
        raise ValueError(f"category is {validators.shown(row.category)}, one of {known} was expected")
