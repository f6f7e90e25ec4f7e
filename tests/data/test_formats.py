"""Reading samples in both formats, and the message for every fault."""

from __future__ import annotations

from typing import Any

import pytest

from m2pt_cli.data.formats import image_names, sample_of
from m2pt_cli.data.sample import BytesImage, ImageReference, Turn
from m2pt_cli.data.validation import InvalidRow


def find(value: Any) -> ImageReference:
    return BytesImage(f"found {value}", b"")


def llava(*values: str, **extra: Any) -> dict[str, Any]:
    roles = ("human", "gpt")
    return {"conversations": [{"from": roles[i % 2], "value": v} for i, v in enumerate(values)], **extra}


def messages(*contents: Any, **extra: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)], **extra}


def names(row: dict[str, Any]) -> list[str]:
    return [image.name for image in sample_of(row, 1, find).images]


def test_a_llava_row() -> None:
    row = llava("<image>\nWhat?", "A cat.", "Where?", "Here.", id=7, image="a.jpg", task_name="vqa")
    sample = sample_of(row, 1, find)
    assert sample.id == "7" and sample.task == "vqa" and [i.name for i in sample.images] == ["found a.jpg"]
    assert sample.turns == (
        Turn("user", "<image>\nWhat?"), Turn("assistant", "A cat."), Turn("user", "Where?"), Turn("assistant", "Here."),
    )  # fmt: skip


def test_text_alone_and_several_images() -> None:
    assert sample_of(llava("Hi", "Hello"), 3, find).id == "3"
    for nothing in (None, "", []):
        assert names(llava("Hi", "Hello", image=nothing)) == []
    assert names(llava("<image> or <image>?", "The first.", image=["a", "b"])) == ["found a", "found b"]
    assert names(llava("<image> or <image>?", "The first.", images=["a", "b"])) == ["found a", "found b"]


def test_plain_messages_get_their_images_in_front() -> None:
    sample = sample_of(messages("What?", "A cat.", images=["a", "b"]), 1, find)
    assert sample.turns[0].text == "<image>\n<image>\nWhat?"
    assert sample_of(messages("What <image>?", "A cat.", images=["a"]), 1, find).turns[0].text == "What <image>?"


def test_messages_in_parts() -> None:
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
    answer = [{"type": "text", "text": "A cat."}]
    sample = sample_of(messages(parts, answer, images=["a"]), 1, find)
    assert sample.turns == (Turn("user", "<image>\nWhat?"), Turn("assistant", "A cat."))
    inline = [{"type": "text", "text": "What? "}, {"type": "image_url", "image_url": {"url": "u"}}]
    assert names(messages(inline, answer)) == ["found {'url': 'u'}"]
    assert names(messages([{"type": "image", "image": "x"}, {"type": "text", "text": "?"}], "A.")) == ["found x"]


def test_a_system_message_stands_before_the_first_question() -> None:
    row = {"messages": [{"role": "system", "content": "Be brief."}, *messages("<image>\nWhat?", "A cat.")["messages"]]}
    assert sample_of({**row, "images": ["a"]}, 1, find).turns[0].text == "Be brief.\n<image>\nWhat?"


def test_a_struct_of_lists_is_a_list_of_structs() -> None:
    row = {"conversations": {"from": ["human", "gpt"], "value": ["Hi", "Hello"]}}
    assert sample_of(row, 1, find).turns == (Turn("user", "Hi"), Turn("assistant", "Hello"))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("text", "a text instead of an object"),
        ({"question": "q"}, "neither conversations nor messages in it, but question"),
        ({"conversations": "q"}, "conversations is a text instead of a list"),
        ({"conversations": []}, "conversations is empty"),
        ({"conversations": ["q"]}, "turn 1 is a text instead of an object"),
        ({"conversations": [{"from": "bot", "value": "q"}]}, "turn 1 has the role 'bot'"),
        ({"conversations": [{"from": ["x"], "value": "q"}]}, "turn 1 has the role"),
        ({"conversations": [{"value": "q"}]}, "turn 1 has the role None"),
        ({"messages": [{"role": "user", "content": 3}]}, "turn 1 has number as its text"),
        ({"messages": [{"role": "user"}]}, "turn 1 has null as its text"),
        (messages([{"type": "video"}], "a"), "turn 1 holds a part of type 'video'"),
        (llava("q", "a", "q"), "the last question has no answer"),
        ({"conversations": llava("q", "a")["conversations"][1:]}, "turn 1 is the assistant's where the user's"),
        ({"conversations": llava("q", "a")["conversations"][:1] * 2}, "turn 2 is the user's where the assistant's"),
        (llava("q", " "), "turn 2 is empty: an answer was expected"),
        (llava("", "a"), "turn 1 is empty: a question was expected"),
        (llava("q", "half \ud83d"), "turn 2 holds what is no character"),
        (llava("<image>\nq", "a"), "1 <image> marks for 0 images"),
        (llava("q", "a", image="x"), "0 <image> marks for 1 images"),
        (llava("<image><image>", "a", image="x"), "2 <image> marks for 1 images"),
        (llava("q", "<image>", image="x"), "<image> in an answer"),
        (llava("<image>", "a", image="x", images=["y"]), "both image and images"),
        (messages([{"type": "image", "image": "x"}], "a", images=["y"]), "images both in the messages and beside"),
        (messages("<image>\nq", "a", images=["x", "y"]), "1 <image> marks for 2 images"),
    ],
)
def test_every_fault_is_named(row: Any, said: str) -> None:
    with pytest.raises(InvalidRow, match=said):
        sample_of(row, 1, find)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (llava("<video>\nwhat is it?", "a.", video="a.mp4"), "'video' in it: only images are supported"),
        (messages("what is it?", "a.", videos=["a.mp4"]), "'videos' in it: only images"),
        (messages("<image>what is it?", "a.", images=["a"], audios=["a.wav"]), "'audios' in it: only images"),
        (messages("what is it?", "a.", Audio={"bytes": b"x"}), "'Audio' in it: only images"),
        (messages("what is it?", "a.", video_path="a.mp4"), "'video_path' in it: only images"),
        (messages("what is it?", "a.", image_path="a.png"), "'image_path' in it: name the image with the key 'image'"),
        (messages("what is it?", "a.", image_url="http://x/a"), "'image_url' in it: name the image"),
        (messages("what is it?", "a.", img="a.png"), "'img' in it: name the image"),
        (messages("what is it?", "a.", Image="a.png"), "'Image' in it: name the image"),
        (messages("what is it?", "a.", file_name="a.PNG"), "'file_name' in it: name the image"),
        (llava("<audio>\nwhat is said?", "a."), "the mark <audio> in a question: only images"),
        (llava("<image>\n<video>\nwhat?", "a.", image="x"), "the mark <video> in a question: only images"),
        (messages("<|image_pad|>what?", "a."), r"the mark <\|image_pad\|> in a question: <image> is the one"),
        (messages("<image 1> what?", "a.", images=["x"]), "the mark <image 1> in a question: <image> is the one"),
        (messages("<Image> what?", "a.", images=["x"]), "the mark <Image> in a question: <image> is the one"),
        (messages("Where is <ref-object>?", "<bbox>", objects={"ref": ["a"], "bbox": [[1, 2, 3, 4]]}), "<ref-object>"),
        (messages([{"type": "video", "video": "a.mp4"}], "a."), "turn 1 holds a part of type 'video'"),
        (messages([{"type": "input_audio", "input_audio": {}}], "a."), "a part of type 'input_audio'"),
        (messages([{"type": "video_url", "video_url": {"url": "u"}}], "a."), "a part of type 'video_url'"),
        ({"messages": [{"role": "user", "content": "q", "images": ["a"]}]}, "turn 1 has an image beside its text"),
        ({"messages": [{"role": "user", "content": "q", "video": "a"}]}, "turn 1 has 'video' in it: only images"),
    ],
)
def test_media_that_would_be_dropped_are_refused_by_name(row: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRow, match=said):
        sample_of(row, 1, find)


def test_notes_beside_an_image_and_empty_media_are_no_media() -> None:
    notes = {
        "image_path": "kept/a.png",
        "image_url": "http://x",
        "video": None,
        "audios": [],
        "image_id": 7,
        "path": "x",
    }
    assert names(llava("<image>\nWhat?", "A cat.", image="a", **notes)) == ["found a"]
    assert names(messages([{"type": "image", "image": "x"}, "?"], "A.", image_url="u")) == ["found x"]
    assert names(messages("Hi", "Use the <video> tag.", source="notes.txt", file_name="talk.txt", image_id="7")) == []


def trained(*values: Any, **extra: Any) -> list[bool]:
    """Whether each turn is trained on, of a conversation whose second and fourth turns hold ``values``."""
    row = messages("q", "a", "q", "b", **extra)
    for place, value in zip((1, 3), values, strict=False):
        row["messages"][place].update(value)
    return [turn.supervised for turn in sample_of(row, 1, find).turns]


@pytest.mark.parametrize("key", ["loss", "train", "training", "weight"])
def test_an_answer_marked_as_not_trained_on_is_not(key: str) -> None:
    assert trained({key: False}, {key: True}) == [True, False, True, True]
    assert trained({key: 0}, {key: 1}) == [True, False, True, True]
    assert trained({key: 0.0}, {key: None}) == [True, False, True, True]
    assert trained() == [True] * 4
    with pytest.raises(InvalidRow, match="no answer in it is trained"):
        trained({key: False}, {key: False})
    for value in (0.5, "false", 2, [0], float("nan")):
        with pytest.raises(InvalidRow, match=f"turn 2 has '{key}': .* where true or false is supported"):
            trained({key: value})


def test_a_question_can_not_be_trained_on() -> None:
    row = messages("q", "a")
    row["messages"][0]["loss"] = False
    assert sample_of(row, 1, find).turns == (Turn("user", "q"), Turn("assistant", "a"))
    row["messages"][0]["loss"] = True
    with pytest.raises(InvalidRow, match="turn 1 is a question with 'loss': only answers"):
        sample_of(row, 1, find)


def test_the_images_a_row_names() -> None:
    assert image_names(llava("q", "a", image="x")) == ["x"]
    assert image_names({"images": ["x", {"bytes": b""}, "y"]}) == ["x", "y"]
    assert image_names("text") == image_names({"image": None}) == []
