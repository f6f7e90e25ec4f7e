"""Images checked before a model is loaded: headers of all, every pixel of a small set.

Decoding 186,000 photographs takes an hour; reading their headers takes half a minute. In a large set a fault behind the
header is met when the image is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from m2pt_cli.data.faults import Faults
from m2pt_cli.data.samples import ImageReference, Sample, StoredImage
from m2pt_cli.errors import InputError

# A set of up to this many images is decoded as a whole: a few seconds.
DECODED_UP_TO = 500
# Threads wait for the disk together; each takes this many images at a time.
_THREADS, _SHARE = 8, 64


def with_readable_images(
    samples: Sequence[Sample], faults: Faults, *, report: Callable[[str], None] | None = None
) -> list[Sample]:
    """The samples whose images can be read; the others are added to ``faults``.

    Only stored images are looked at: drawn ones can't be broken, and URLs are fetched when used.
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
    """What a set of images is known by."""
    return tuple(image.name for image in images)
