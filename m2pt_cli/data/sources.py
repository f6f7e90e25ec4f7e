"""Load training data from a known source, a file, a folder, or a data set on the Hub. No torch."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2pt_cli.data.formats import sample_of
from m2pt_cli.data.images import ImageFolders
from m2pt_cli.data.readers import SUFFIXES, chosen, read_rows
from m2pt_cli.data.sample import Sample
from m2pt_cli.data.validation import InvalidRow, ValidationReport, image_key, with_readable_images
from m2pt_cli.errors import InputError, SettingsError
from m2pt_cli.settings import closest

Report = Callable[[str], None]

KNOWN = ("demo", "vision-flan")
# A known source with more faulty samples than this number and than this fraction is treated as damaged.
_MAX_FAULTY, _MAX_FAULTY_FRACTION = 5, 0.01


@dataclass(frozen=True)
class LoadedSamples:
    """Samples that passed every check, with a summary.

    Attributes:
        samples: the samples, in order.
        faults: number of faulty samples found, with ``skip_bad`` or in a known source; otherwise faults are an error.
        skipped: number of faulty samples that were dropped.
        description: the names of the sources and their sample counts, for a model card.
        fingerprint: sha256 over ids, conversations and image names; changes when the data changes.
    """

    samples: list[Sample]
    faults: int
    skipped: int
    description: str
    fingerprint: str


def load_samples(
    data: Sequence[str],
    *,
    images: Sequence[Path] = (),
    limit: int | None = None,
    skip_bad: bool = False,
    seed: int = 0,
    allow_url: bool = False,
    report: Report | None = None,
) -> LoadedSamples:
    """Read and check everything that ``--data`` names.

    Each name is a known source (``demo``, ``vision-flan``), else an existing path (``./demo`` for a folder of that
    name), else the id of a data set on the Hub (``owner/name``, or ``owner/name:subset``).

    Args:
        data: names of sources.
        images: folders of the images; by default the folder of each file.
        limit: at most this many samples, sampled by ``seed``, in their order.
        skip_bad: drop and count faulty samples instead of raising.
        seed: of the sampling, and of the demo data.
        allow_url: images may be fetched by URL.
        report: called with a line of text about downloads and long checks.

    Raises:
        InputError: a file is missing or invalid, or samples are faulty; the message lists the first 20 and their
            number.
        UnavailableError: a data set is not available.
    """
    say = report or (lambda text: None)
    for spec in data:
        _require_plausible(spec)
    ImageFolders(images)  # raises for a missing folder even if no source uses it
    if images and all(spec in KNOWN for spec in data):
        say(f"--images is not used: {' and '.join(data)} bring their own")
    faults = ValidationReport(skip_bad=skip_bad)
    dropped = 0
    parts: list[tuple[str, list[Sample]]] = []
    for spec in data:
        # The user can't repair the few faulty samples of a published data set: they are dropped, with a message.
        found = ValidationReport(skip_bad=True) if spec in KNOWN else faults
        request = SourceRequest(spec, tuple(images), limit, seed, allow_url, found, say)
        samples = with_readable_images(_read(request), found, report=say)
        parts.append((spec, samples))
        allowed = max(_MAX_FAULTY, _MAX_FAULTY_FRACTION * (found.total + len(samples)))
        if found is not faults and found.total > allowed:
            faults.take(found)
        elif found is not faults and found.total:
            say(f"{found.total:,} faulty samples of {spec} are left out, the first: {found.shown[0]}")
            dropped += found.total
    faults.raise_any("mend them, or drop them with --skip-bad")
    merged = [(index, sample) for index, (_, samples) in enumerate(parts) for sample in samples]
    merged = chosen(merged, limit, seed)
    if not merged:
        reason = f": all {faults.total:,} were faulty, the first {faults.shown[0]}" if faults.total else ""
        raise InputError(f"no samples in {', '.join(data)}{reason}")
    counts = [sum(index == number for index, _ in merged) for number in range(len(parts))]
    samples = [sample for _, sample in merged]
    return LoadedSamples(
        samples=samples,
        faults=faults.total + dropped,
        skipped=faults.total + dropped,
        description=" + ".join(
            f"{_shown_name(spec)} ({count:,} samples)" for (spec, _), count in zip(parts, counts, strict=True)
        ),
        fingerprint=fingerprint(samples),
    )


@dataclass(frozen=True)
class SourceRequest:
    """The arguments of reading one source; see `load_samples`. Faulty samples are added to ``faults``."""

    spec: str
    images: tuple[Path, ...]
    limit: int | None
    seed: int
    allow_url: bool
    faults: ValidationReport
    report: Report


def split_validation(
    samples: Sequence[Sample],
    spec: str,
    seed: int,
    *,
    images: Sequence[Path] = (),
    skip_bad: bool = False,
    allow_url: bool = False,
    report: Report | None = None,
) -> tuple[list[Sample], list[Sample]]:
    """Return ``(training, validation)`` samples; validation is a random fraction of ``samples``, or a second source.

    Samples about the same image stay in one split, so that validation images are never trained on.

    Args:
        samples: the samples to split.
        spec: a fraction such as ``0.05``, or a source as in `load_samples`.
        seed: of the random split, and of the second source.

    Raises:
        SettingsError: the fraction is not between 0 and 1, or leaves no training samples.
        InputError, UnavailableError: as in `load_samples`.
    """
    fraction = _number(spec)
    if fraction is None:
        loaded = load_samples([spec], images=images, seed=seed, skip_bad=skip_bad, allow_url=allow_url, report=report)
        return list(samples), loaded.samples
    if not 0 < fraction < 1:
        raise SettingsError(f"--validation {spec} is not a share between 0 and 1", "--validation 0.05, or a file")
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, sample in enumerate(samples):
        key = image_key(sample.images) or ("", str(index))
        groups.setdefault(key, []).append(index)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    wanted = max(1, round(fraction * len(samples)))
    chosen_indices: set[int] = set()
    for group in order:
        if len(chosen_indices) >= wanted:
            break
        chosen_indices.update(group)
    if len(chosen_indices) == len(samples):
        raise SettingsError(
            f"--validation {spec} of {len(samples)} samples leaves none to train on", "give a second file instead"
        )
    training = [sample for index, sample in enumerate(samples) if index not in chosen_indices]
    return training, [samples[index] for index in sorted(chosen_indices)]


def fingerprint(samples: Sequence[Sample]) -> str:
    """sha256 over ids, conversations and the file names of images (without their folders)."""
    digest = hashlib.sha256()
    for sample in samples:
        names = [Path(image.name).name for image in sample.images]
        turns = [(turn.role, turn.text) for turn in sample.turns]
        digest.update(repr((sample.id, names, turns)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _require_plausible(spec: str) -> None:
    """Raise InputError for a name that is no known source, no path and no Hub id, before anything is read."""
    if spec in KNOWN or Path(spec).exists():
        return
    near = closest(spec, KNOWN)
    if Path(spec).suffix.lower() in (*SUFFIXES, ".parquet", ".arrow", ".csv") or spec.startswith((".", "/", "~")):
        raise InputError(f"--data {spec}: no such file or folder", "check the path given to --data")
    owner, _, name = spec.partition("/")
    if not (owner and name and "/" not in name):
        raise InputError(
            f"--data {spec!r} is no known source, no file here, and no Hub id (owner/name){near}",
            f"known sources: {', '.join(KNOWN)}",
        )


def _read(request: SourceRequest) -> list[Sample]:
    if request.spec == "demo":
        from m2pt_cli.demo.dataset import demo_train_samples

        return demo_train_samples(request.limit, request.seed)
    if request.spec == "vision-flan":
        from m2pt_cli.data.vision_flan import read_vision_flan

        rows, folders = read_vision_flan(limit=request.limit, seed=request.seed, report=request.report)
        return samples_of(rows, request, folders, where="vision-flan")
    path = Path(request.spec)
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        rows = chosen(read_rows(path, request.faults), request.limit, request.seed)
        return samples_of(rows, request, request.images or (path.parent,), where=path.name)
    from m2pt_cli.data.hub_datasets import cache_folders, open_data_set

    table = open_data_set(request.spec, report=request.report)
    numbers = chosen(list(range(len(table))), request.limit, request.seed)
    own = (path if path.is_dir() else path.parent,) if path.exists() else cache_folders()
    numbered = ((number + 1, table[number]) for number in numbers)
    return samples_of(numbered, request, request.images or own, where=_shown_name(request.spec))


def samples_of(rows: Any, request: SourceRequest, folders: Sequence[Path], *, where: str) -> list[Sample]:
    """Convert ``(number, row)`` pairs to samples; invalid rows are added to ``request.faults`` instead."""
    find = ImageFolders(folders, allow_url=request.allow_url).find
    samples = []
    for number, row in rows:
        try:
            samples.append(sample_of(row, number, find))
        except InvalidRow as fault:
            row_id = row.get("id") if isinstance(row, dict) else None
            request.faults.add(f"{where} sample {number}" + (f" ({row_id})" if row_id is not None else ""), str(fault))
    return samples


def _shown_name(spec: str) -> str:
    return Path(spec).name if Path(spec).exists() and spec not in KNOWN else spec


def _number(spec: str) -> float | None:
    try:
        return float(spec)
    except ValueError:
        return None
