"""Question lines: parsing, faults, and batches that do not wait for more input."""

from __future__ import annotations

import io
import json
import os
import threading

import pytest

from m2pt_cli.generation.question_lines import MAX_LINE_BYTES, arriving, parse_line


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
        (b"[1, 2]", "not a JSON object"),
        (b'{"image": "x.png"}', "no 'question'"),
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
