"""Images that a benchmark names: found in --images, missing, rejected or downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from m2pt_cli.data.sample import ImageReference
from m2pt_cli.errors import InputError
from m2pt_cli.evaluation.images import BenchmarkImages, missing_images
from m2pt_cli.evaluation.task import Example


def _item(image: ImageReference | None) -> Example:
    return Example("1#0", "1", None, image, "What?", "a cat")


def test_missing_images_are_counted_and_an_error_where_nothing_can_be_asked(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    folders = BenchmarkImages([tmp_path], False, needed_by="mine")
    there, gone, url = (_item(folders.find(name, None)) for name in ("a.png", "b.png", "https://example.com/c.png"))
    assert missing_images({"mine": [there, _item(None)]}) == []
    (said,) = missing_images({"mine": [there, gone], "other": [there]})
    assert said.startswith("mine: 1 of 2 questions can't be asked: image b.png is in none of the 1 folders")
    assert len(missing_images({"mine": [gone, gone], "other": [there]})) == 1
    for items, hint in [([gone, url], "check --images"), ([url, gone], "--allow-url fetches it")]:
        with pytest.raises(InputError, match="mine: 2 of 2 questions can't be asked") as caught:
            missing_images({"mine": items})
        assert caught.value.hint == hint
