"""Faults of a data set, gathered so that one report names them all."""

from __future__ import annotations

from m2pt_cli.errors import InputError

SHOWN = 20


class RowFault(Exception):
    """Why one row of a data set can't be used; gathered by `Faults`."""


class Faults:
    """Counts faulty samples and keeps the first few in words.

    Args:
        skip_bad: faults are counted and dropped; `raise_any` then raises nothing.
    """

    def __init__(self, *, skip_bad: bool = False) -> None:
        self.skip_bad = skip_bad
        self.total = 0
        self.shown: list[str] = []

    def add(self, where: str, reason: str) -> None:
        """Note that ``where`` (a sample, a line) is faulty."""
        self.total += 1
        if len(self.shown) < SHOWN:
            self.shown.append(f"{where}: {reason}")

    def take(self, other: Faults) -> None:
        """Add the faults of another source."""
        self.total += other.total
        self.shown = (self.shown + other.shown)[:SHOWN]

    def raise_any(self, hint: str) -> None:
        """Raise one InputError with the first `SHOWN` faults and their number, if there are any and none is skipped."""
        if not self.total or self.skip_bad:
            return
        more = f"; and {self.total - SHOWN:,} more" if self.total > SHOWN else ""
        samples = "sample" if self.total == 1 else "samples"
        raise InputError(f"{self.total:,} faulty {samples}: {'; '.join(self.shown)}{more}", hint)
