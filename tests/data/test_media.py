"""Names that other tools give to media: which are refused, which are ours, and which are notes."""

from __future__ import annotations

from typing import Any

import pytest

from m2pt_cli.data.media import one_image, unsupported_marks, unsupported_media


@pytest.mark.parametrize(
    "key", ["video", "videos", "Audio", "audios", "speech", "video_path", "audio_url", "point_cloud"]
)
def test_other_media_are_refused_beside_an_image_too(key: str) -> None:
    for has_image in (True, False):
        assert str(unsupported_media({key: ["a"]}, has_image=has_image)).startswith(f"{key!r} in it: only images")
    for nothing in (None, "", [], False, 0):
        assert unsupported_media({key: nothing}, has_image=False) is None


@pytest.mark.parametrize("key", ["image_path", "image_url", "image_file", "img", "imgs", "img_path", "photo", "Images"])
def test_other_names_of_an_image_are_refused_where_no_image_is_named(key: str) -> None:
    assert str(unsupported_media({key: "a.png"}, has_image=False)).startswith(f"{key!r} in it: name the image")
    assert unsupported_media({key: "a.png"}, has_image=True) is None or key == "Images"


@pytest.mark.parametrize(
    "key", ["image_id", "image_size", "id", "task", "source", "video_id", "text", "width", "videoed"]
)
def test_notes_are_left_alone(key: str) -> None:
    assert unsupported_media({key: "7", "file_name": "talk.txt"}, has_image=False) is None


def test_a_file_s_name_counts_where_it_is_a_medium_s() -> None:
    for name in ("a.png", "b/c.JPEG", "d.mp4", "e.wav"):
        assert unsupported_media({"path": name}, has_image=False) is not None
    assert unsupported_media({"path": "a.png"}, has_image=True) is None


@pytest.mark.parametrize(
    "mark",
    ["<video>", "<audio>", "<|video|>", "<|image|>", "<|image_pad|>", "<image_1>", "<image1>", "<image 1>",
     "<|image_1|>", "<IMAGE>", "<img>", "<ImageHere>", "<image_soft_token>", "<start_of_image>",
     "<image_placeholder>", "<bbox>"],
)  # fmt: skip
def test_marks_of_other_tools_are_refused(mark: str) -> None:
    assert f"the mark {mark} in a question" in str(unsupported_marks(["What?", f"<image>\nIs {mark} here?"]))


def test_our_own_mark_and_other_words_in_brackets_are_none() -> None:
    texts = ["<image>\nWhat?", "if a<image>b", "<b>bold</b>", "<imagine>", "<videos of cats>", "a < b > c", "<s>"]
    assert unsupported_marks(texts) is None


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({}, (None, None)),
        ({"image": "a"}, ("a", None)),
        ({"images": ["a"]}, ("a", None)),
        ({"image": None, "images": []}, (None, None)),
        ({"image": ["a", "b"]}, (None, "'image' holds 2 images: a question is about one")),
        ({"image": "a", "images": "a"}, (None, "both 'image' and 'images' in it")),
        ({"image": 7}, (7, None)),
    ],
)
def test_the_image_of_a_question(record: dict[str, Any], expected: tuple[Any, str | None]) -> None:
    assert one_image(record) == expected
