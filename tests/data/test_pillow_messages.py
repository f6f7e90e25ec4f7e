"""Pillow's warnings and its libraries' messages stay off stderr; everybody else's stay."""

from __future__ import annotations

import io
import logging
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fixtures.pictures import picture
from PIL import Image

from m2pt_cli.data.sample import BytesImage
from m2pt_cli.errors import InputError


def palette_png() -> bytes:
    content = io.BytesIO()
    image = picture(16, 16).convert("P", palette=Image.Palette.ADAPTIVE)
    image.save(content, "PNG", transparency=bytes(range(200)))
    return content.getvalue()


def damaged_tiff() -> bytes:
    content = io.BytesIO()
    picture(64, 48).save(content, "TIFF", compression="tiff_lzw")
    damaged = bytearray(content.getvalue())
    damaged[60:200] = np.random.default_rng(0).integers(0, 256, 140, dtype=np.uint8).tobytes()
    return bytes(damaged)


def test_a_palette_with_transparent_bytes_is_read_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning would end the decoding, and then there is no image
        image = BytesImage("a", palette_png())
        with ThreadPoolExecutor(4) as threads:
            assert {opened.mode for opened in threads.map(lambda _: image.open(), range(20))} == {"RGB"}
        with pytest.raises(UserWarning, match="ours"):
            warnings.warn("ours", UserWarning, stacklevel=1)
    assert capfd.readouterr() == ("", "")


def test_the_tiff_library_is_silent_too(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError):
        BytesImage("a", damaged_tiff()).open()
    assert capfd.readouterr() == ("", "")


def test_messages_of_other_loggers_are_still_printed() -> None:
    BytesImage("a", palette_png()).open()
    assert not logging.getLogger().handlers or logging.getLogger("PIL").propagate
    assert logging.getLogger("PIL").level == logging.NOTSET
