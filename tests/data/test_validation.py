"""Checking images before training: every header, and every pixel of a small data set."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.pictures import picture, picture_file

from m2pt_cli.data import validation as checks
from m2pt_cli.data.sample import DecodedImage, FileImage, ImageReference, Sample, Turn
from m2pt_cli.data.validation import SHOWN, MissingImage, ValidationReport, with_readable_images
from m2pt_cli.errors import InputError

TURNS = (Turn("user", "<image>\nq"), Turn("assistant", "a"))


def samples_of(*images: ImageReference) -> list[Sample]:
    return [Sample(str(number), (image,), TURNS) for number, image in enumerate(images)]


@pytest.fixture
def images(tmp_path: Path) -> list[ImageReference]:
    """A good one, one that breaks off after its header, one that is none, and a drawn one."""
    good = picture_file(tmp_path / "good.jpg", 64, 64)
    (tmp_path / "half.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:1500])
    (tmp_path / "none.jpg").write_text("hello")
    others = [FileImage(str(tmp_path / name), tmp_path / name) for name in ("half.jpg", "none.jpg")]
    return [good, *others, DecodedImage("drawn", picture(8, 8))]


def test_a_small_set_is_decoded(images: list[ImageReference]) -> None:
    faults = ValidationReport()
    kept = with_readable_images(samples_of(*images, images[1]), faults)
    assert [sample.id for sample in kept] == ["0", "3"] and faults.total == 3
    assert "half.jpg can't be read" in faults.shown[0] and faults.shown[2].startswith("sample 4: ")


def test_of_a_large_set_headers_are_read(images: list[ImageReference], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "DECODED_UP_TO", 2)
    faults, said = ValidationReport(), list[str]()
    kept = with_readable_images(samples_of(*images), faults, report=said.append)
    assert [sample.id for sample in kept] == ["0", "1", "3"] and faults.total == 1
    assert said == ["checking the headers of 3 images"]


def test_twenty_faults_are_shown_and_all_counted() -> None:
    faults, other = ValidationReport(), ValidationReport()
    for number in range(15):
        faults.add(f"sample {number}", "bad")
        other.add(f"other {number}", "bad")
    faults.take(other)
    with pytest.raises(InputError) as caught:
        faults.raise_any("mend them")
    text = str(caught.value)
    assert text.startswith("30 faulty samples: sample 0: bad; ") and text.endswith("; and 10 more")
    assert text.count(": bad") == SHOWN and "other 4: bad" in text and caught.value.hint == "mend them"
    skipping = ValidationReport(skip_bad=True)
    skipping.add("sample 1", "bad")
    skipping.raise_any("mend them")
    assert skipping.total == 1


def test_many_missing_images_are_one_short_line_that_names_the_flag() -> None:
    report = ValidationReport()
    for number in range(40):
        report.add(f"a.json sample {number + 1}", MissingImage(f"{number % 20}.jpg", "photos"))
    with pytest.raises(InputError) as raised:
        report.raise_any("mend them, or drop them with --skip-bad")
    assert raised.value.message == (
        "40 samples name images that do not exist in photos: 0.jpg, 1.jpg, 2.jpg and 17 more"
    )
    assert str(raised.value.hint).startswith("name the folder that holds them with --images DIR")


def test_one_missing_image_is_named_and_other_faults_keep_their_words() -> None:
    alone, mixed = ValidationReport(), ValidationReport()
    alone.add("sample 1", MissingImage("a.jpg", "photos"))
    with pytest.raises(InputError, match=r"^1 sample names an image that does not exist in photos: a\.jpg$"):
        alone.raise_any("mend them")
    mixed.add("sample 2", "conversations is empty")
    mixed.take(alone)
    with pytest.raises(
        InputError, match="2 faulty samples: sample 2: conversations is empty; sample 1: image"
    ) as raised:
        mixed.raise_any("mend them")
    assert raised.value.hint == "mend them; if the images lie elsewhere, name their folder with --images"
