"""What a run will do, worked out before torch is imported: folder, samples, base and resolved settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from m2pt_cli.bases.catalog import BaseEntry, entry_of, resolve_base_name
from m2pt_cli.data.samples import Sample
from m2pt_cli.data.sources import load_samples, split_validation
from m2pt_cli.settings import TrainSettings
from m2pt_cli.training.events import Events, Notice


@dataclass(frozen=True)
class Plan:
    """A run before its model is loaded.

    Attributes:
        settings: resolved: every default of the base is filled in.
        data: ``{"description", "samples", "validation", "faults", "skipped", "fingerprint"}``.
    """

    settings: TrainSettings
    base: str
    entry: BaseEntry
    train: Sequence[Sample]
    validation: Sequence[Sample]
    data: dict[str, Any]


def make_plan(settings: TrainSettings, *, base: str, events: Events) -> Plan:
    """Read and check the data, then resolve the settings with the defaults of the base.

    Raises:
        InputError: the data is missing or faulty.
        UnavailableError: the base or a data set can't be had.
        SettingsError: the settings contradict each other once the defaults are known.
    """
    loaded = load_samples(
        settings.data,
        images=settings.images,
        limit=settings.limit,
        skip_bad=settings.skip_bad,
        seed=settings.seed,
        allow_url=settings.allow_url,
        report=lambda text: events(Notice(text)),
    )
    train: Sequence[Sample] = loaded.samples
    validation: Sequence[Sample] = ()
    if settings.validation is not None:
        train, validation = split_validation(loaded.samples, settings.validation, settings.seed)
    entry = entry_of(base)
    resolved = resolve(settings, entry, base=base)
    data = {
        "description": loaded.description,
        "samples": len(train),
        "validation": len(validation),
        "faults": loaded.faults,
        "skipped": loaded.skipped,
        "fingerprint": loaded.fingerprint,
    }
    return Plan(settings=resolved, base=base, entry=entry, train=train, validation=validation, data=data)


def base_name(settings: TrainSettings) -> str:
    """The base of a run: the flag's, then ``M2PT_BASE``, then the default."""
    return resolve_base_name(settings.base, None)


def resolve(settings: TrainSettings, entry: BaseEntry, *, base: str) -> TrainSettings:
    """Settings with the base's defaults for the method; a number of epochs rules out a default of steps, and back."""
    defaults = dict(entry.defaults.for_method(settings.method))
    if settings.epochs is not None:
        defaults.pop("max_steps", None)
    if settings.max_steps is not None:
        defaults.pop("epochs", None)
    return dataclasses.replace(settings.resolve(defaults), base=base)
