"""Load training data from a known source, a file, a folder, or a data set on the Hub. Does not import torch."""

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
# A known source with more invalid samples than both this number and this fraction counts as damaged.
_FEW_FAULTY, _MOST_FAULTY = 5, 0.01


@dataclass(frozen=True)
class LoadedSamples:
    """Samples that passed every check, and facts about them for messages and the model card.

    Attributes:
        faults: number of invalid samples: with ``skip_bad``, or the few of a known source. Others raise an error.
        skipped: how many of them were dropped.
        description: the sources as text, for a model card.
        fingerprint: sha256 over ids, conversations and image names; changes when the data does.
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
    """Read and check all data that ``--data`` names.

    Each name is a known source (``demo``, ``vision-flan``), else an existing path (``./demo`` for a folder of that
    name), else the id of a data set on the Hub (``owner/name``, or ``owner/name:subset``).

    Args:
        images: folders of the images; by default the folder of each file.
        limit: at most this many samples, chosen by ``seed``, in their order.
        skip_bad: drop and count faulty samples.
        allow_url: images may be fetched by URL.
        report: called with lines about downloads and long checks.

    Raises:
        InputError: a file is missing or invalid, or samples are invalid: lists the first 20 and their number.
        UnavailableError: a data set is not available.
    """
    say = report or (lambda text: None)
    for spec in data:
        _require_plausible(spec)
    ImageFolders(images)  # raises for a wrong folder even if no source uses it
    if images and all(spec in KNOWN for spec in data):
        say(f"--images is not used: {' and '.join(data)} bring their own")
    faults = ValidationReport(skip_bad=skip_bad)
    left_out = 0
    parts: list[tuple[str, list[Sample]]] = []
    for spec in data:
        # A published data set has a few invalid samples, which the user can't fix: they are dropped and reported.
        own = ValidationReport(skip_bad=True) if spec in KNOWN else faults
        request = SourceRequest(spec, tuple(images), limit, seed, allow_url, own, say)
        samples = with_readable_images(_read(request), own, report=say)
        parts.append((spec, samples))
        if own is not faults and own.total > max(_FEW_FAULTY, _MOST_FAULTY * (own.total + len(samples))):
            faults.take(own)
        elif own is not faults and own.total:
            say(f"{own.total:,} faulty samples of {spec} are left out, the first: {own.shown[0]}")
            left_out += own.total
    faults.raise_any("mend them, or drop them with --skip-bad")
    merged = [(index, sample) for index, (_, samples) in enumerate(parts) for sample in samples]
    merged = chosen(merged, limit, seed)
    if not merged:
        said = f": all {faults.total:,} were faulty, the first {faults.shown[0]}" if faults.total else ""
        raise InputError(f"no samples in {', '.join(data)}{said}")
    counts = [sum(index == number for index, _ in merged) for number in range(len(parts))]
    samples = [sample for _, sample in merged]
    return LoadedSamples(
        samples=samples,
        faults=faults.total + left_out,
        skipped=faults.total + left_out,
        description=" + ".join(
            f"{_shown_name(spec)} ({count:,} samples)" for (spec, _), count in zip(parts, counts, strict=True)
        ),
        fingerprint=fingerprint(samples),
    )


@dataclass(frozen=True)
class SourceRequest:
    """The arguments for loading one source."""

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
    """Return ``(training, validation)``: validation is a fraction of the samples chosen by ``seed``, or another source.

    Samples about the same image stay on one side, so that the validation loss is that of images never trained on.

    Args:
        spec: a fraction such as ``0.05``, or a source as `load_samples` takes it.

    Raises:
        SettingsError: the fraction is not between 0 and 1, or leaves one side empty.
        InputError, UnavailableError: as `load_samples`.
    """
    share = _number(spec)
    if share is None:
        loaded = load_samples([spec], images=images, seed=seed, skip_bad=skip_bad, allow_url=allow_url, report=report)
        return list(samples), loaded.samples
    if not 0 < share < 1:
        raise SettingsError(f"--validation {spec} is not a share between 0 and 1", "--validation 0.05, or a file")
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, sample in enumerate(samples):
        key = image_key(sample.images) or ("", str(index))
        groups.setdefault(key, []).append(index)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    wanted = max(1, round(share * len(samples)))
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
    """Return the sha256 over ids, conversations and the file names of images, independent of the folder's path."""
    digest = hashlib.sha256()
    for sample in samples:
        names = [Path(image.name).name for image in sample.images]
        # Only turns that are not trained on have a third value, so that all other data keeps its fingerprint.
        turns = [(turn.role, turn.text, *(() if turn.supervised else (False,))) for turn in sample.turns]
        digest.update(repr((sample.id, names, turns)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _require_plausible(spec: str) -> None:
    """Raise for a name that can't be any of the three kinds, before anything is read."""
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
    """Return the valid samples among numbered rows; the others are added to the request's faults."""
    find = ImageFolders(folders, allow_url=request.allow_url).find
    samples = []
    for number, row in rows:
        try:
            samples.append(sample_of(row, number, find))
        except InvalidRow as fault:
            said = row.get("id") if isinstance(row, dict) else None
            request.faults.add(f"{where} sample {number}" + (f" ({said})" if said is not None else ""), fault)
    return samples


def _shown_name(spec: str) -> str:
    return Path(spec).name if Path(spec).exists() and spec not in KNOWN else spec


def _number(spec: str) -> float | None:
    try:
        return float(spec)
    except ValueError:
        return None
