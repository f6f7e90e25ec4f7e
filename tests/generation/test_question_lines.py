"""Question lines: parsing, faults, and batches that do not wait for more input."""

from __future__ import annotations

import io
import json
import os
import threading

import pytest

from m2pt_cli.generation.question_lines import MAX_LINE_BYTES, array_members, arriving, parse_line


def test_a_full_line_keeps_its_id_and_unknown_keys() -> None:
    line = parse_line(json.dumps({"id": "a7", "image": "x.png", "question": "What?", "split": 3}).encode(), 5)
    assert (line.id, line.image, line.question, line.error) == ("a7", "x.png", "What?", None)
    assert line.extra == {"split": 3}


def test_the_id_defaults_to_the_line_number() -> None:
    assert parse_line(b'{"image": "x.png", "question": "What?"}', 5).id == 5


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"image": "x.png", "question"', "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[1, 2]", "is a list: one JSON object a line was expected"),
        (b"7", "not a JSON object"),
        (b'{"image": "x.png"}', "no 'question'"),
        (b'{"image": ["a.png", "b.png"], "question": "What?"}', "'image' holds 2 images: a question is about one"),
        (b'{"images": ["a.png", "b.png"], "question": "What?"}', "'images' holds 2 images"),
        (b'{"image": "a.png", "images": ["b.png"], "question": "What?"}', "both 'image' and 'images' in it"),
        (b'{"image": [["a.png"]], "question": "What?"}', "'image' is not a path"),
        (b'{"image": {"path": "a.png"}, "question": "What?"}', "'image' is not a path"),
        (b'{"video": "a.mp4", "question": "What?"}', "'video' in it: only images are supported"),
        (b'{"image": "a.png", "audio": "a.wav", "question": "What?"}', "'audio' in it: only images"),
        (b'{"image_url": "http://x/a.png", "question": "What?"}', "'image_url' in it: name the image with the key"),
        (b'{"image_path": "a.png", "question": "What?"}', "'image_path' in it"),
        (b'{"img": "a.png", "question": "What?"}', "'img' in it"),
        (b'{"Image": "a.png", "question": "What?"}', "'Image' in it"),
        (b'{"image": "a.png", "question": "<video> What?"}', "the mark <video> in a question"),
        (b'{"image": "a.png", "question": "<image><image> What?"}', "holds 2 <image> marks for 1 images"),
        (b'{"question": "<image> What?"}', "holds 1 <image> marks for 0 images"),
        (b'{"question": "half \\ud83d"}', "holds what is no character"),
        (b'{"image": "x.png", "question": "  "}', "no 'question'"),
        (b'{"image": 7, "question": "What?"}', "'image' is not a path"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"question": "What?", "id": ' + b"1" * 5_000 + b"}", "not valid JSON"),
        (b'{"question": "' + b"x" * MAX_LINE_BYTES + b'"}', "longer than"),
    ],
)
def test_a_bad_line_is_described_not_raised(raw: bytes, words: str) -> None:
    line = parse_line(raw, 3)
    assert line.error is not None
    assert words in line.error
    assert "line 3" in line.error


@pytest.mark.parametrize("key", ["image", "images"])
@pytest.mark.parametrize("value", ["x.png", ["x.png"]])
def test_a_list_of_one_image_is_that_image(key: str, value: object) -> None:
    line = parse_line(json.dumps({key: value, "question": "What?", "image_url": "kept"}).encode(), 1)
    assert (line.image, line.error, line.extra) == ("x.png", None, {"image_url": "kept"})


@pytest.mark.parametrize("record", [{"image": None}, {"image": []}, {"images": []}, {}])
def test_a_question_may_have_no_image(record: dict[str, object]) -> None:
    line = parse_line(json.dumps({**record, "question": "What?"}).encode(), 1)
    assert (line.image, line.error) == (None, None)


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_is_its_members(indent: int | None) -> None:
    rows = [{"question": "What?"}, ["no"], {"question": "naïve?"}]
    content = "\ufeff" + json.dumps(rows, indent=indent, ensure_ascii=False)
    members = array_members(content.encode())
    assert members is not None
    lines = [parse_line(line, number) for number, line in members]
    assert [line.question for line in lines] == ["What?", None, "naïve?"]
    assert lines[1].error == "line 2 is a list: one JSON object a line was expected"
    assert array_members(b'{"question": "What?"}\n') is None
    assert array_members(b"[1]\n[2]\n") is None
    assert array_members(b"[\xff]") is None


def test_lines_are_numbered_over_blank_ones_and_the_last_needs_no_newline() -> None:
    batches = list(arriving(io.BytesIO(b"a\n\n  \nb\r\nc"), most=10))
    assert [item for batch in batches for item in batch] == [(1, b"a"), (4, b"b"), (5, b"c")]


def test_a_batch_is_bounded() -> None:
    batches = list(arriving(io.BytesIO(b"x\n" * 7), most=3))
    assert max(map(len, batches)) <= 3
    assert sum(map(len, batches)) == 7


def test_an_over_long_line_is_one_line() -> None:
    lines = [item for batch in arriving(io.BytesIO(b"y" * (3 * MAX_LINE_BYTES) + b"\nz\n"), most=9) for item in batch]
    assert [number for number, _ in lines] == [1, 2]
    assert parse_line(*reversed(lines[0])).error is not None
    assert lines[1][1] == b"z"


def test_a_line_is_taken_while_the_pipe_stays_open() -> None:
    reader, writer = os.pipe()
    batches = arriving(os.fdopen(reader, "rb"), most=8)
    os.write(writer, b"first\n")
    got: list[list[tuple[int, bytes]]] = []
    thread = threading.Thread(target=lambda: got.append(next(batches)))
    thread.start()
    thread.join(timeout=10)
    assert got == [[(1, b"first")]]
    os.write(writer, b"second\n")
    os.close(writer)
    assert list(batches) == [[(2, b"second")]]
