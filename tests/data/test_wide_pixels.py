"""Images of more than 8 bits a channel: the picture saved with 8 bits, within one level, or refused by its mode."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m2pt_cli.data.sample import BytesImage, FileImage, image_reference
from m2pt_cli.errors import InputError

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def png(levels: np.ndarray, colour_type: int) -> bytes:
    """A PNG of 16 bits a channel, which Pillow reads and does not write."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = levels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(data: bytes, *, bits: int, photometric: int = 1, sample_format: int = 1, order: str = "<") -> bytes:
    """A grey TIFF of 16 x 16 pixels with the tags given."""
    tags = [(256, 16), (257, 16), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 16)]
    tags += [(279, len(data)), (339, sample_format)]
    kinds = {273: 4, 279: 4}
    packed = b"".join(
        struct.pack(f"{order}HHI", tag, kinds.get(tag, 3), 1)
        + (struct.pack(f"{order}I", value) if tag in kinds else struct.pack(f"{order}HH", value, 0))
        for tag, value in tags
    )
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(data))
    return start + data + struct.pack(f"{order}H", len(tags)) + packed + bytes(4)


def twelve_bits(levels: np.ndarray) -> bytes:
    flat = (levels.astype(np.uint32) * 4095 // 255).reshape(-1, 2)
    return b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in flat.tolist())


def grey_of(content: bytes) -> np.ndarray:
    pixels = np.asarray(BytesImage("a", content).open()).astype(int)
    assert (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all()
    return pixels[..., 0]


def saved(levels: np.ndarray, kind: str) -> bytes:
    content = io.BytesIO()
    Image.fromarray(levels).save(content, kind)
    return content.getvalue()


WIDE = GREY.astype(np.uint16) * 257
SAME = {
    "png 16": saved(WIDE, "PNG"),
    "tiff 16": saved(WIDE, "TIFF"),
    "tiff 16 big-endian": tiff(WIDE.astype(">u2").tobytes(), bits=16, order=">"),
    "tiff 16 white is zero": tiff((65535 - WIDE).astype("<u2").tobytes(), bits=16, photometric=0),
    "tiff 12": tiff(twelve_bits(GREY), bits=12),
    "tiff 32, 16 bits used": saved(WIDE.astype(np.int32), "TIFF"),
    "tiff 32, 8 bits used": saved(GREY.astype(np.int32), "TIFF"),
    "tiff 32 unsigned": tiff(WIDE.astype("<u4").tobytes(), bits=32),
    "tiff 16 signed, 8 bits used": tiff(GREY.astype("<i2").tobytes(), bits=16, sample_format=2),
    "tiff float to 1": saved(GREY.astype(np.float32) / 255, "TIFF"),
    "tiff float to 255": saved(GREY.astype(np.float32), "TIFF"),
    "jpeg 2000": saved(WIDE, "JPEG2000"),
    "pgm 16": saved(WIDE, "PPM"),
    "png 16 with alpha": png(np.stack([WIDE, np.full_like(WIDE, 65535)], axis=-1), 4),
    "png 16 colour": png(np.stack([WIDE] * 3, axis=-1), 2),
    "png 16 colour with alpha": png(np.stack([WIDE] * 3 + [np.full_like(WIDE, 65535)], axis=-1), 6),
}


@pytest.mark.parametrize("content", SAME.values(), ids=SAME)
def test_wide_and_narrow_files_of_one_picture_have_equal_pixels(content: bytes) -> None:
    assert np.abs(grey_of(content) - GREY).max() <= 1


def test_levels_are_rounded_not_cut() -> None:
    levels = np.tile(np.array([0, 128, 129, 32_768, 65_535, 25_700, 256, 65_406], np.uint16), (2, 1))
    assert grey_of(saved(levels, "PNG"))[0].tolist() == [0, 0, 1, 128, 255, 100, 1, 254]


def test_a_dark_picture_of_sixteen_bits_stays_dark() -> None:
    assert grey_of(saved(np.full((4, 4), 257 * 3, np.uint16), "PNG")).max() == 3
    assert grey_of(saved(np.full((4, 4), 200, np.uint16), "PPM")).max() == 1  # the format names its range


REFUSED = {
    "negative": (saved(GREY.astype(np.int32) - 9, "TIFF"), "mode I with values from -9 to 246"),
    "over 16 bits": (saved(GREY.astype(np.int32) << 20, "TIFF"), "mode I with values from 0 to 2.6"),
    "ten bits in 32": (saved(GREY.astype(np.int32) * 4, "TIFF"), "mode I with values from 0 to 1020"),
    "signed 16": (tiff((WIDE // 2).astype("<i2").tobytes(), bits=16, sample_format=2), "mode I with"),
    "float over 255": (saved(GREY.astype(np.float32) * 257, "TIFF"), "mode F with values from 0 to 65535"),
    "float a little over 1": (saved(GREY.astype(np.float32) / 250, "TIFF"), "mode F with values from 0 to 1.02"),
    "negative float": (saved(GREY.astype(np.float32) / 255 - 0.1, "TIFF"), "mode F with values from -0.1"),
    "not a number": (saved(np.full((4, 4), np.nan, np.float32), "TIFF"), "mode F with values from nan"),
    "infinite": (saved(np.full((4, 4), np.inf, np.float32), "TIFF"), "mode F with values from inf"),
}


@pytest.mark.parametrize(("content", "said"), REFUSED.values(), ids=REFUSED)
def test_an_unknown_range_is_refused_by_the_mode_s_name(content: bytes, said: str) -> None:
    with pytest.raises(InputError, match=f"image a has the {said}.*unknown") as caught:
        BytesImage("a", content).open()
    assert "8 bits" in str(caught.value.hint)


def test_images_in_memory_are_scaled_as_files_are(tmp_path: Path) -> None:
    held = image_reference(Image.fromarray(WIDE), folder=tmp_path)
    assert np.array_equal(np.asarray(held.open())[..., 0], GREY)
    with pytest.raises(InputError, match="has the mode F"):
        image_reference(Image.new("F", (4, 4), 5.0), folder=tmp_path).open()


def test_a_file_on_disk_is_read_alike(tmp_path: Path) -> None:
    Image.fromarray(WIDE.astype(np.int32)).save(tmp_path / "i32.tif")
    assert np.array_equal(np.asarray(FileImage("a", tmp_path / "i32.tif").open())[..., 1], GREY)
