"""Read the questions of ``m2pt infer --input``: JSONL, processed as it arrives, or one JSON array in a file."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from m2pt_cli.data.chat import question_turn
from m2pt_cli.data.media import one_image, unsupported_marks
from m2pt_cli.data.readers import is_json_array, json_lines
from m2pt_cli.data.sample import holds_no_character
from m2pt_cli.errors import InputError

# A longer line is not a question but a mistake or an attempt to exhaust the memory.
MAX_LINE_BYTES = 1 << 20

_END = None


@dataclass(frozen=True)
class QuestionLine:
    """One input line: ``{"image", "question", "id"?}`` and unknown keys, or its error."""

    id: Any
    image: str | None
    question: str | None
    error: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def parse_line(line: bytes, number: int) -> QuestionLine:
    """Parse the question of a line; a fault is stored in ``error``, so that the run continues.

    Args:
        line: one line of JSON in UTF-8.
        number: its number, from 1, used as the id if the line has none.
    """
    if len(line) > MAX_LINE_BYTES:
        return QuestionLine(number, None, None, f"line {number} is longer than {MAX_LINE_BYTES} bytes")
    try:
        record = json.loads(line.decode("utf-8-sig"))
    # ValueError: not UTF-8, not JSON, or an integer of thousands of digits.
    except (ValueError, RecursionError) as error:
        return QuestionLine(number, None, None, f"line {number} is not valid JSON: {error}")
    if isinstance(record, list):
        return QuestionLine(number, None, None, f"line {number} is a list: one JSON object a line was expected")
    if not isinstance(record, dict):
        return QuestionLine(number, None, None, f"line {number} is not a JSON object")
    identity, question = record.get("id", number), record.get("question")
    image, problem = one_image(record)
    text = question if isinstance(question, str) else None
    if problem is None:
        problem = _problem(image, text)
    known = ("id", "image", "question") if problem else ("id", "image", "images", "question")
    extra = {key: value for key, value in record.items() if key not in known}
    shown_image = image if isinstance(image, str) else None
    return QuestionLine(identity, shown_image, text, problem and f"line {number}: {problem}", extra)


def _problem(image: Any, question: str | None) -> str | None:
    """Return the error of an image and a question, or None."""
    if question is None or not question.strip():
        return "no 'question' text in it"
    if image is not None and (not isinstance(image, str) or not image):
        return "'image' is not a path"
    if holds_no_character(question):
        return f"the question holds what is no character: {ascii(question)[:80]}"
    try:
        question_turn(question, int(image is not None))
    except InputError as error:
        return error.message
    return unsupported_marks([question])


def array_members(content: bytes) -> list[tuple[int, bytes]] | None:
    """Return the numbered members of a JSON array, one line each; None if ``content`` is not an array but lines."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    if not is_json_array(text):
        return None
    return [(number, line.encode()) for number, line in enumerate(json_lines(text), start=1) if line.strip()]


def arriving(stream: BinaryIO, *, most: int) -> Iterator[list[tuple[int, bytes]]]:
    """Yield numbered lines in batches as they arrive; blank lines are counted and skipped.

    A batch holds what has arrived, at most ``most`` lines; it never waits for another line while it has one. A
    thread reads, so that the lines of a slow pipe are answered one by one.
    """
    arrived: queue.Queue[tuple[int, bytes] | None] = queue.Queue(maxsize=4 * most)

    def read() -> None:
        number = 0
        try:
            while chunk := stream.readline(MAX_LINE_BYTES + 2):
                number += 1
                # The rest of an over-long line is read and dropped, so that it is not parsed as separate lines.
                end = chunk
                while not end.endswith(b"\n") and (end := stream.readline(MAX_LINE_BYTES)):
                    pass
                if chunk.strip():
                    arrived.put((number, chunk.rstrip(b"\r\n")))
        finally:
            arrived.put(_END)

    threading.Thread(target=read, daemon=True, name="question-lines").start()
    while True:
        first = arrived.get()
        if first is _END:
            return
        batch = [first]
        ended = False
        while len(batch) < most:
            try:
                following = arrived.get_nowait()
            except queue.Empty:
                break
            if following is _END:
                ended = True
                break
            batch.append(following)
        yield batch
        if ended:
            return
