"""Collect the faulty samples of a data set, unreadable images included, and report them in one error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from m2pt_cli.data.sample import ImageReference, Sample, StoredImage
from m2pt_cli.errors import InputError

SHOWN = 20


class InvalidRow(Exception):
    """One row of a data set can't be used; the message says why. Collected by `ValidationReport`."""


class ValidationReport:
    """Counts faulty samples and keeps the messages of the first `SHOWN`.

    Args:
        skip_bad: faulty samples are counted, but `raise_any` does not raise.
    """

    def __init__(self, *, skip_bad: bool = False) -> None:
        self.skip_bad = skip_bad
        self.total = 0
        self.shown: list[str] = []

    def add(self, where: str, reason: str) -> None:
        """Record that ``where`` (a sample, a line) is faulty."""
        self.total += 1
        if len(self.shown) < SHOWN:
            self.shown.append(f"{where}: {reason}")

    def take(self, other: ValidationReport) -> None:
        """Add the faults of another report."""
        self.total += other.total
        self.shown = (self.shown + other.shown)[:SHOWN]

    def raise_any(self, hint: str) -> None:
        """Raise one InputError with all faults counted and the first `SHOWN` listed; nothing if ``skip_bad``."""
        if not self.total or self.skip_bad:
            return
        more = f"; and {self.total - SHOWN:,} more" if self.total > SHOWN else ""
        samples = "sample" if self.total == 1 else "samples"
        raise InputError(f"{self.total:,} faulty {samples}: {'; '.join(self.shown)}{more}", hint)


# Up to this many images are decoded completely, which takes a few seconds; of more, only the headers are read.
DECODED_UP_TO = 500
# The check waits for the disk, so it runs in threads; each takes a chunk of images at a time.
_THREADS, _CHUNK = 8, 64


def with_readable_images(
    samples: Sequence[Sample], faults: ValidationReport, *, report: Callable[[str], None] | None = None
) -> list[Sample]:
    """Return the samples whose images can be read; the others are added to ``faults``.

    Only stored images are checked: drawn images can't be damaged, and URLs are fetched when they are used.
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
    unique = list(images.values())
    chunks = [unique[start : start + _CHUNK] for start in range(0, len(unique), _CHUNK)]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = [reason for chunk in pool.map(lambda chunk: _reasons(chunk, decode), chunks) for reason in chunk]
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
    """The names of a set of images, as a key."""
    return tuple(image.name for image in images)
