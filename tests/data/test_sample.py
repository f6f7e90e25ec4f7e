"""Images: which can be read, which are rejected, and the messages."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from fixtures.pictures import picture, picture_file
from PIL import Image

from m2pt_cli.data.sample import BytesImage, DecodedImage, FileImage, UrlImage, image_reference, image_size, read_size
from m2pt_cli.errors import InputError


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds hardly anything."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def test_file_and_bytes_give_the_same_rgb(tmp_path: Path) -> None:
    image = picture_file(tmp_path / "a.png", 30, 20)
    held = BytesImage("a", (tmp_path / "a.png").read_bytes())
    assert np.array_equal(np.asarray(image.open()), np.asarray(picture(30, 20)))
    assert np.array_equal(np.asarray(held.open()), np.asarray(picture(30, 20)))
    assert image.size() == held.size() == (30, 20)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    suffix = "jpg" if mode == "CMYK" else "png"
    picture(8, 8).convert(mode).save(tmp_path / f"a.{suffix}")
    assert FileImage("a", tmp_path / f"a.{suffix}").open().mode == "RGB"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_of_an_animation_the_first_image_is_taken(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a", kind, save_all=True, append_images=frames[1:])
    image = FileImage("a", tmp_path / "a")
    red, green, blue = np.asarray(image.open())[8, 8].tolist()
    assert red > 240 and green < 15 and blue < 15 and image.size() == (16, 16)


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "BMP", "PPM", "ICO"])
def test_other_formats_are_read(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (32, 32), (200, 100, 50)).save(tmp_path / "a", kind)
    pixel = np.asarray(FileImage("a", tmp_path / "a").open()).astype(int)[8, 8]
    assert np.abs(pixel - (200, 100, 50)).max() <= 3


def test_sixteen_bit_grey_keeps_its_levels(tmp_path: Path) -> None:
    levels = np.array([[0, 256 * 100, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    assert np.asarray(FileImage("a", tmp_path / "a.png").open())[0, :, 0].tolist() == [0, 100, 255]


def test_a_photograph_held_sideways_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = picture_file(tmp_path / "a.png", 30, 20, exif=exif)
    assert image.size() == image.open().size == (20, 30)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"not an image at all", "not an image, or damaged"),
        (b"", "not an image, or damaged"),
        (png_header(40_000, 40_000), "40000 x 40000|decompression bomb"),
        (png_header(10_000, 9_999), "10000 x 9999 pixels, more than 89,478,485"),
        (png_header(9_000, 10), "one side is over 200 times the other"),
    ],
    ids=["text", "empty", "bomb", "large", "thin"],
)
def test_what_is_no_usable_image_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "bad.png"
    file.write_bytes(content)
    for read in (FileImage(str(file), file).open, FileImage(str(file), file).size):
        with pytest.raises(InputError, match=f"bad.png.*({said})"):
            read()


def test_a_truncated_image_has_a_header_but_no_pixels(tmp_path: Path) -> None:
    whole = io.BytesIO()
    picture(64, 64).save(whole, "JPEG")
    image = BytesImage("half.jpg", whole.getvalue()[:1500])
    assert image.size() == (64, 64)
    with pytest.raises(InputError, match=r"half\.jpg can't be read: .*truncated"):
        image.open()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.png does not exist"):
        FileImage("gone.png", tmp_path / "gone.png").open()
    with pytest.raises(InputError, match="does not exist"):
        read_size("gone.png", tmp_path / "gone.png")


def test_reference_by_path_url_or_picture(tmp_path: Path) -> None:
    picture_file(tmp_path / "a.png", 30, 20)
    by_path = image_reference("a.png", folder=tmp_path)
    assert by_path.name == str(tmp_path / "a.png") and image_size(by_path) == (30, 20)
    assert image_reference(tmp_path / "a.png", folder=Path("elsewhere")).open().size == (30, 20)
    with pytest.raises(InputError, match=r"does not exist"):
        image_reference("b.png", folder=tmp_path)
    with pytest.raises(InputError, match="is a folder"):
        image_reference(tmp_path, folder=Path())
    with pytest.raises(InputError, match="does not exist"):  # longer than a file system takes
        image_reference("x" * 300, folder=tmp_path)
    with pytest.raises(InputError, match="is a URL") as caught:
        image_reference("https://example.org/a.png", folder=tmp_path)
    assert "--allow-url" in str(caught.value.hint)
    assert image_reference("http://example.org/a.png", folder=tmp_path, allow_url=True) == UrlImage(
        "http://example.org/a.png"
    )


def test_pictures_in_memory_are_known_by_their_content() -> None:
    one, same, other = (image_reference(picture(8, 8, seed), folder=Path()) for seed in (0, 0, 1))
    assert isinstance(one, DecodedImage) and image_size(one) == (8, 8)
    assert one.name == same.name != other.name


def test_a_url_that_can_not_be_fetched_is_named() -> None:
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9/a\.png can't be fetched"):
        UrlImage("http://127.0.0.1:9/a.png").open()
