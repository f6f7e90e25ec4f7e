"""Collect the invalid rows of a data set, unreadable images included, and report them together."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from m2pt_cli.data.sample import ImageReference, Sample, StoredImage
from m2pt_cli.errors import InputError

SHOWN = 20
_NAMES_SHOWN = 3


class InvalidRow(Exception):
    """The reason why a row of a data set can't be used; collected by `ValidationReport`."""


class MissingImage(InvalidRow):
    """A row names an image that none of the folders contains."""

    def __init__(self, name: str, folder: str) -> None:
        super().__init__(f"image {os.path.join(folder, name)} does not exist")
        self.name = name
        self.folder = folder


class ValidationReport:
    """Counts invalid samples and keeps messages for the first few.

    Args:
        skip_bad: invalid samples are counted and dropped; `raise_any` then raises nothing.
    """

    def __init__(self, *, skip_bad: bool = False) -> None:
        self.skip_bad = skip_bad
        self.total = 0
        self.shown: list[str] = []
        self._missing: list[MissingImage] = []

    def add(self, where: str, reason: str | InvalidRow) -> None:
        """Record that ``where`` (a sample, a line) is invalid."""
        self.total += 1
        if isinstance(reason, MissingImage):
            self._missing.append(reason)
        if len(self.shown) < SHOWN:
            self.shown.append(f"{where}: {reason}")

    def take(self, other: ValidationReport) -> None:
        """Add the faults of another source."""
        self.total += other.total
        self._missing += other._missing
        self.shown = (self.shown + other.shown)[:SHOWN]

    def raise_any(self, hint: str) -> None:
        """Raise one InputError with the first `SHOWN` faults and their number, if any, unless ``skip_bad``."""
        if not self.total or self.skip_bad:
            return
        if self._missing and len(self._missing) == self.total:
            raise self._all_missing()
        more = f"; and {self.total - SHOWN:,} more" if self.total > SHOWN else ""
        samples = "sample" if self.total == 1 else "samples"
        if self._missing:
            hint = f"{hint}; if the images lie elsewhere, name their folder with --images"
        raise InputError(f"{self.total:,} faulty {samples}: {'; '.join(self.shown)}{more}", hint)

    def _all_missing(self) -> InputError:
        """Return the error for missing images as the only faults: most likely they are in another folder."""
        names = list(dict.fromkeys(fault.name for fault in self._missing))
        rest = len(names) - _NAMES_SHOWN
        listed = ", ".join(names[:_NAMES_SHOWN]) + (f" and {rest:,} more" if rest > 0 else "")
        verb = "sample names an image that does" if self.total == 1 else "samples name images that do"
        return InputError(
            f"{self.total:,} {verb} not exist in {self._missing[0].folder}: {listed}",
            "name the folder that holds them with --images DIR, or drop these samples with --skip-bad",
        )


# All images of a data set are decoded if there are at most this many: it takes a few seconds.
DECODED_UP_TO = 500
# Threads read from disk in parallel; each takes this many images at a time.
_THREADS, _SHARE = 8, 64


def with_readable_images(
    samples: Sequence[Sample], faults: ValidationReport, *, report: Callable[[str], None] | None = None
) -> list[Sample]:
    """Return the samples whose images can be read; the others are added to ``faults``.

    Only stored images are checked: drawn ones can't be damaged, and URLs are fetched when used.
    """
    images: dict[str, StoredImage] = {}
    for sample in samples:
        for image in sample.images:
            if isinstance(image, StoredImage):
                images.setdefault(image.name, image)
    if not images:
        return list(samples)
    decode = len(images) <= DECODED_UP_TO
    if not decode and report is not None:
        report(f"checking the headers of {len(images):,} images")
    every = list(images.values())
    shares = [every[start : start + _SHARE] for start in range(0, len(every), _SHARE)]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = [reason for share in pool.map(lambda share: _reasons(share, decode), shares) for reason in share]
    reasons = dict(zip(images, found, strict=True))
    kept = []
    for sample in samples:
        reason = next((r for image in sample.images if (r := reasons.get(image.name)) is not None), None)
        if reason is None:
            kept.append(sample)
        else:
            faults.add(f"sample {sample.id}", reason)
    return kept


def _reasons(images: Sequence[StoredImage], decode: bool) -> list[str | None]:
    return [_reason(image, decode) for image in images]


def _reason(image: StoredImage, decode: bool) -> str | None:
    try:
        if decode:
            image.open()
        else:
            image.size()
    except InputError as error:
        return error.message
    return None


def image_key(images: Sequence[ImageReference]) -> tuple[str, ...]:
    """Return the key that identifies a sequence of images."""
    return tuple(image.name for image in images)
