"""The plan of a run, made before the model is loaded: samples, base and resolved settings."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from m2pt_cli.data.sample import Sample
from m2pt_cli.data.sources import load_samples, split_validation
from m2pt_cli.errors import UnavailableError
from m2pt_cli.models.catalog import BaseEntry, entry_of, resolve_base_name
from m2pt_cli.runtime.distributed import process_count
from m2pt_cli.settings import TrainSettings
from m2pt_cli.training.events import Events, Notice

# owner/name, or owner/name:subset. Not with a data file's suffix: that is a file that does not exist.
_HUB_ID = re.compile(r"(?![./~])[\w.-]+/[\w.-]+(?<!\.json)(?<!\.jsonl)(:\S+)?")
# More passes than this over the data learn it by heart; only a default number of steps is worth a warning.
_MANY_PASSES = 30


@dataclass(frozen=True)
class Plan:
    """A run before its model is loaded.

    Attributes:
        settings: resolved settings: the base's defaults are filled in.
        entry: the base in the catalogue.
        train, validation: the samples.
        data: ``{"description", "samples", "validation", "faults", "skipped", "fingerprint"}``.
    """

    settings: TrainSettings
    entry: BaseEntry
    train: Sequence[Sample]
    validation: Sequence[Sample]
    data: dict[str, Any]

    @property
    def base(self) -> str:
        """The base's name: an alias, a Hub id or an absolute path."""
        return self.entry.name


def make_plan(settings: TrainSettings, *, base: str, events: Events) -> Plan:
    """Read and check the data, then fill in the base's default settings.

    Raises:
        InputError: the data is missing or faulty.
        UnavailableError: the base, a data set or a tracker is not available.
        DeviceError: the requested device does not exist.
    """

    def report(text: str, *, is_warning: bool = False) -> None:
        events(Notice(text, is_warning))

    require_trackers(settings)
    if (settings.device or os.environ.get("M2PT_DEVICE") or "cpu") != "cpu":
        # Fail before reading the data: importing torch takes seconds, reading a large data set minutes.
        from m2pt_cli.runtime.device import choose_device

        choose_device(settings.device)
    if any(needs_download(name) for name in settings.data):
        # A download takes hours; checking that this machine can train the base takes seconds.
        from m2pt_cli.models.load import require_fast_enough

        require_fast_enough(entry_of(base), settings.device, for_training=True)
    loaded = load_samples(
        settings.data,
        images=settings.images,
        limit=settings.limit,
        skip_bad=settings.skip_bad,
        seed=settings.seed,
        allow_url=settings.allow_url,
        report=report,
    )
    train: Sequence[Sample] = loaded.samples
    validation: Sequence[Sample] = ()
    if settings.validation is not None:
        train, validation = split_validation(
            loaded.samples,
            settings.validation,
            settings.seed,
            images=settings.images,
            skip_bad=settings.skip_bad,
            allow_url=settings.allow_url,
            report=report,
        )
    entry = entry_of(base)
    resolved = resolve(settings, entry)
    count = passes(resolved, resolved.max_steps, len(train))
    if settings.max_steps is None and count is not None and count > _MANY_PASSES:
        report(
            f"{len(train):,} samples are few for the {resolved.max_steps:,} steps that {entry.name} takes by default: "
            f"each is trained on {count:,.0f} times. --epochs sets the number of passes; --validation 0.1 keeps the "
            "best step",
            is_warning=True,
        )
    data = {
        "description": loaded.description,
        "samples": len(train),
        "validation": len(validation),
        "faults": loaded.faults,
        "skipped": loaded.skipped,
        "fingerprint": loaded.fingerprint,
    }
    return Plan(settings=resolved, entry=entry, train=train, validation=validation, data=data)


def passes(settings: TrainSettings, steps: int | None, samples: int) -> float | None:
    """How often a run of so many optimiser steps meets each sample; None without a number of steps.

    Args:
        settings: resolved.
    """
    if steps is None:
        return None
    per_step = (settings.batch_size or 1) * (settings.accumulation or 1) * process_count()
    return steps * per_step / max(samples, 1)


def needs_download(name: str) -> bool:
    """Return whether a name given to ``--data`` must be downloaded from the Hub."""
    return name == "vision-flan" or (bool(_HUB_ID.fullmatch(name)) and not Path(name).exists())


def require_trackers(settings: TrainSettings) -> None:
    """Check that the experiment trackers of ``--report-to`` are installed.

    Raises:
        UnavailableError: names every missing tracker.
    """
    missing = [name for name in settings.report_to if name != "none" and find_spec(name) is None]
    if missing:
        raise UnavailableError(
            f"--report-to {', '.join(missing)}: not installed", "python -m pip install 'm2pt_cli[track]'"
        )


def base_name(settings: TrainSettings) -> str:
    """Return the name of the base: from ``--base``, else ``$M2PT_BASE``, else the default."""
    return resolve_base_name(settings.base, None)


def resolve(settings: TrainSettings, entry: BaseEntry) -> TrainSettings:
    """Fill in the base's defaults for the method.

    A given ``epochs`` drops a default ``max_steps`` and vice versa. A given ``learning_rate`` drops the default
    learning rates of single parts.
    """
    defaults = dict(entry.defaults.for_method(settings.method))
    defaults.pop("workers", None)  # depends on the machine; `worker_count` decides once the device is known
    if settings.epochs is not None:
        defaults.pop("max_steps", None)
    if settings.max_steps is not None:
        defaults.pop("epochs", None)
    if settings.learning_rate is not None:
        defaults = {name: value for name, value in defaults.items() if not name.endswith("_lr")}
    return dataclasses.replace(settings.resolve(defaults), base=entry.name)
