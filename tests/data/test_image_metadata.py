"""Broken metadata never stops a readable picture, and orientation is applied where it can be read."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from fixtures.pictures import picture
from PIL import Image

from m2pt_cli.data.image_metadata import without_metadata
from m2pt_cli.data.sample import BytesImage, FileImage
from m2pt_cli.errors import InputError

# Orientation 6 in a little-endian EXIF block, and behind it a tag of an impossible length.
TURNED_THEN_BROKEN = (
    b"Exif\0\0II*\0\x08\0\0\0\x02\0"
    + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    + b"\x00\x02\x0c\0\x04\0\0\0\xff\xff\0\0"
)
BROKEN_EXIF = {
    "short": b"MM\0*\0\0",
    "garbage": b"Exif\0\0garbage!!",
    "two letters": b"II",
    "text for a number": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0",
    "orientation 99": b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 99, 0) + b"\0\0\0\0",
}


def encoded(kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    picture(40, 24).save(content, kind, **options)
    return content.getvalue()


def png_with(kind: bytes, data: bytes, *, bad_crc: bool = False) -> bytes:
    """A PNG with one more chunk behind its header."""
    plain = encoded("PNG")
    crc = zlib.crc32(kind + data) ^ bad_crc
    return plain[:33] + struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc) + plain[33:]


def jpeg_with(marker: int, data: bytes) -> bytes:
    """A JPEG with one more segment in front."""
    plain = encoded("JPEG")
    return plain[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data + plain[2:]


@pytest.mark.parametrize("exif", BROKEN_EXIF.values(), ids=BROKEN_EXIF)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_broken_exif_is_passed_over(kind: str, exif: bytes) -> None:
    image = BytesImage("a", encoded(kind, exif=exif))
    expected = np.asarray(Image.open(io.BytesIO(encoded(kind))).convert("RGB"))
    assert np.array_equal(np.asarray(image.open()), expected)
    assert image.size() == (40, 24)
    assert not image.open().getexif()  # whoever asks the decoded image meets nothing broken


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_readable_orientation_in_front_of_a_broken_tag_is_applied(kind: str) -> None:
    image = BytesImage("a", encoded(kind, exif=TURNED_THEN_BROKEN))
    expected = Image.open(io.BytesIO(encoded(kind))).convert("RGB").transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(np.asarray(image.open()), np.asarray(expected))
    assert image.size() == (24, 40)


@pytest.mark.parametrize("held", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_every_orientation_is_as_pillow_turns_it(tmp_path: Path, kind: str, held: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = held
    file = tmp_path / f"a.{kind.lower()}"
    picture(5, 3).save(file, kind, exif=exif)
    with Image.open(file) as opened:
        expected = ImageOps.exif_transpose(opened)
    image = FileImage("a", file)
    assert np.array_equal(np.asarray(image.open()), np.asarray(expected))
    assert image.size() == expected.size


@pytest.mark.parametrize(
    "content",
    [
        png_with(b"tEXt", b"comment\0words", bad_crc=True),
        png_with(b"zTXt", b"a\0\0" + zlib.compress(b"a" * (2 << 20))),  # larger than Pillow lets a text be
        png_with(b"iCCP", b""),
        png_with(b"pHYs", b"\0"),
        png_with(b"tRNS", b""),
        png_with(b"fcTL", b"\0"),
        jpeg_with(0xE2, b"ICC_PROFILE\0"),
        jpeg_with(0xE0, b"JFIF\0"),
        jpeg_with(0xEE, b"Adobe"),
        jpeg_with(0xFE, b"\xff" * 60_000),
    ],
    ids=["text crc", "text bomb", "profile", "density", "transparency", "animation", "icc", "jfif", "adobe", "comment"],
)
def test_a_picture_behind_broken_metadata_is_read(content: bytes) -> None:
    image = BytesImage("a", content)
    kind = "PNG" if content.startswith(b"\x89PNG") else "JPEG"
    expected = np.asarray(Image.open(io.BytesIO(encoded(kind))).convert("RGB"))
    assert np.array_equal(np.asarray(image.open()), expected)
    assert image.size() == (40, 24)


def test_damaged_pixels_are_an_error_with_the_image_s_name(tmp_path: Path) -> None:
    broken = bytearray(encoded("PNG"))
    broken[broken.index(b"IDAT") + 12] ^= 0xFF
    for content in (bytes(broken), png_with(b"tEXt", b"a\0b", bad_crc=True)[:-200], jpeg_with(0xE0, b"JFIF\0")[:500]):
        file = tmp_path / "bad"
        file.write_bytes(content)
        for image in (BytesImage("bad", content), FileImage("bad", file)):
            with pytest.raises(InputError, match="image bad can't be read"):
                image.open()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "SGI", "TGA", "ICO", "JPEG2000"])
def test_whatever_a_decoder_raises_is_an_input_error(kind: str) -> None:
    whole = encoded(kind)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        content = bytearray(whole)
        for place in rng.integers(0, min(len(content), 300), 4):
            content[place] = rng.integers(0, 256)
        image = BytesImage("bad", bytes(content))
        for read in (image.open, image.size):
            try:
                read()
            except InputError as error:
                assert "image bad" in error.message


@pytest.mark.parametrize("error", [struct.error, zlib.error, MemoryError, AttributeError, RecursionError, KeyError])
def test_any_exception_of_a_decoder_names_the_image(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error("within")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(InputError, match=r"image a\.png can't be read: .*within"):
        BytesImage("a.png", b"").open()


def test_what_is_left_without_metadata(tmp_path: Path) -> None:
    assert without_metadata(io.BytesIO(png_with(b"tEXt", b"a\0b"))) == encoded("PNG")
    left = without_metadata(io.BytesIO(jpeg_with(0xE1, b"Exif\0\0")))
    assert left is not None and b"Exif" in left and b"JFIF" not in left
    assert without_metadata(io.BytesIO(encoded("PNG"))) is None  # nothing to leave out
    assert without_metadata(io.BytesIO(encoded("GIF"))) is None
    assert without_metadata(io.BytesIO(b"\xff\xd8\xff")) is None
    assert without_metadata(tmp_path / "missing") is None
