"""Metadata of an image file: its EXIF orientation, and a copy of the file without metadata.

Many programs write metadata, and it is often broken while the pixels are fine. So nothing here raises an error.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

_EXIF_ORIENTATION = 0x0112
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The chunks that hold the pixels; all others are ancillary. Animations have their first image in IDAT.
_PNG_PIXELS = frozenset((b"IHDR", b"PLTE", b"IDAT", b"IEND"))
_JPEG_SIGNATURE = b"\xff\xd8"
_JPEG_SCAN, _JPEG_COMMENT = 0xDA, 0xFE
# APP1 holds EXIF and XMP, whose errors stop no decoder; a complete "Adobe" segment in APP14 names the colour transform.
_JPEG_EXIF, _JPEG_ADOBE, _ADOBE_BYTES = 0xE1, 0xEE, 12


def orientation(image: Image) -> int:
    """Return the EXIF orientation, 1 to 8 (5 and up: rotated by 90 degrees); 1 if it is missing or can't be read."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode the whole image to read metadata after the pixels
    try:
        held = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # struct.error, SyntaxError, UnicodeDecodeError, ...: broken metadata raises many types
        return 1
    return held if isinstance(held, int) and 1 <= held <= 8 else 1


def upright(image: Image, held: int) -> Image:
    """Rotate or flip ``image`` by its EXIF orientation ``held``; the metadata is not read, so it may be broken."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
    }  # fmt: skip
    return image.transpose(turns[held]) if held in turns else image


def without_metadata(source: Path | IO[bytes]) -> bytes | None:
    """Return the file without its metadata, for a decoder that fails on broken metadata.

    Returns:
        A PNG without ancillary chunks (transparency is one) or a JPEG without application segments; None for other
        formats, and if there is nothing to remove.
    """
    try:
        if isinstance(source, Path):
            with open(source, "rb") as stream:
                content = _if_known(stream)
        else:
            source.seek(0)
            content = _if_known(source)
    except (OSError, ValueError):
        return None
    try:
        if content.startswith(_PNG_SIGNATURE):
            kept = _PNG_SIGNATURE + b"".join(chunk for kind, chunk in _png_chunks(content) if kind in _PNG_PIXELS)
        elif content:
            kept = _jpeg_pixels(content)
        else:
            return None
    except (struct.error, IndexError):
        return None
    return None if kept == content else kept


def _if_known(stream: IO[bytes]) -> bytes:
    """Return the content of a PNG or a JPEG; empty for other files, which may be of any size."""
    head = stream.read(len(_PNG_SIGNATURE))
    return head + stream.read() if head == _PNG_SIGNATURE or head.startswith(_JPEG_SIGNATURE) else b""


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = len(_PNG_SIGNATURE)
    while place + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        yield kind, content[place : place + length + 12]
        place += length + 12


def _jpeg_pixels(content: bytes) -> bytes:
    kept, place = bytearray(content[:2]), 2
    while content[place] == 0xFF:
        marker = content[place + 1]
        if marker == 0xFF:  # padding
            place += 1
            continue
        if marker == _JPEG_SCAN:
            break
        length = 2 + struct.unpack_from(">H", content, place + 2)[0]
        segment = content[place : place + length]
        is_adobe = marker == _JPEG_ADOBE and segment[4:9] == b"Adobe" and length >= 4 + _ADOBE_BYTES
        is_metadata = 0xE0 <= marker <= 0xEF or marker == _JPEG_COMMENT
        if not is_metadata or marker == _JPEG_EXIF or is_adobe:
            kept += segment
        place += length
    return bytes(kept + content[place:])
