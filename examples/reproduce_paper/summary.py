"""Statistics of finished cells: means over seeds, standard errors, differences paired by seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from running import UNTUNED, read_json, write_json
from scipy.stats import t as student

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Mean:
    """A mean over seeds; ``error`` is its standard error, None for a single seed."""

    value: float
    error: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """The difference of two variants on the same seeds; ``low`` and ``high`` are the 95 % interval of the mean.

    ``of_seeds`` counts the seeds in which the first is higher.
    """

    mean: Mean
    low: float | None
    high: float | None
    of_seeds: int

    @property
    def verdict(self) -> str:
        """Return ``above``, ``below``, or that the seeds do not decide it."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return "undecided"
        return "above" if self.low > 0 else "below"


def mean_of(values: Sequence[float]) -> Mean:
    """Return mean and standard error (sample standard deviation over the root of n) of at least one value."""
    n = len(values)
    value = math.fsum(values) / n
    if n == 1:
        return Mean(value, None, 1)
    variance = math.fsum((one - value) ** 2 for one in values) / (n - 1)
    return Mean(value, math.sqrt(variance / n), n)


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """Return the first's values minus the second's over the seeds that both have; None without any.

    The interval is Student's t: the differences are assumed to be normal.
    """
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    differences = [first[seed] - second[seed] for seed in seeds]
    mean = mean_of(differences)
    if mean.error is None:
        return Difference(mean, None, None, int(mean.value > 0))
    reach = float(student.ppf((1 + CONFIDENCE) / 2, mean.n - 1)) * mean.error
    return Difference(mean, mean.value - reach, mean.value + reach, sum(one > 0 for one in differences))


@dataclass(frozen=True)
class Results:
    """All finished cells of a run.

    Attributes:
        records: by variant and seed, what `running.run_cell` wrote.
    """

    records: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)

    def __contains__(self, name: object) -> bool:
        return name in self.records

    def seeds(self, name: str) -> list[int]:
        return sorted(self.records.get(name, {}))

    def one(self, name: str) -> dict[str, Any]:
        """Return the record of a variant's first seed; size and settings are the same for all seeds."""
        return self.records[name][self.seeds(name)[0]]

    def scores(self, name: str, column: str) -> dict[int, float]:
        """Return a score by seed; seeds without it are omitted."""
        found = {seed: record["scores"].get(column) for seed, record in self.records.get(name, {}).items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def mean(self, name: str, column: str) -> Mean | None:
        values = list(self.scores(name, column).values())
        return mean_of(values) if values else None

    def difference(self, first: str, second: str, column: str) -> Difference | None:
        return difference(self.scores(first, column), self.scores(second, column))


def read_results(folder: Path) -> Results:
    """Read the cells of an output directory, or of the single file that `report` writes."""
    files = sorted((folder / "cells").glob("*.json"))
    single = folder / "cells.json"
    return gather((read_json(file) for file in files) if files else read_json(single))


def unpack_cells(folder: Path) -> None:
    """Write the files of finished cells from a committed ``cells.json``, so that a later run continues from it."""
    single = folder / "cells.json"
    if not single.exists() or (folder / "cells").exists():
        return
    for record in read_json(single):
        name = UNTUNED if record["name"] == UNTUNED else f"{record['name']}-seed{record['seed']}"
        write_json(folder / "cells" / f"{name}.json", record)


def gather(records: Iterable[dict[str, Any]]) -> Results:
    """Group records by variant and seed."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for record in records:
        found.setdefault(record["name"], {})[record["seed"]] = record
    return Results(found)
