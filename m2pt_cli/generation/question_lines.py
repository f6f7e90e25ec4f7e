"""Read and parse the JSONL questions of ``m2pt infer --input`` as they arrive."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

# A longer line is not a question: it is a mistake, or an attempt to exhaust memory.
MAX_LINE_BYTES = 1 << 20

_END = None


@dataclass(frozen=True)
class QuestionLine:
    """One parsed input line: ``{"image", "question", "id"?}``.

    Attributes:
        id: the line's ``id``, or its number.
        image: a path; None without an image.
        question: the question.
        error: why the line is invalid, or None.
        extra: all other keys.
    """

    id: Any
    image: str | None
    question: str | None
    error: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def parse_line(line: bytes, number: int) -> QuestionLine:
    """Parse one line; an invalid line gets an ``error`` instead of an exception, so that the run continues.

    Args:
        line: one line of JSON in UTF-8.
        number: the line's number, from 1; used as the id if the line has none.
    """
    if len(line) > MAX_LINE_BYTES:
        return QuestionLine(number, None, None, f"line {number} is longer than {MAX_LINE_BYTES} bytes")
    try:
        record = json.loads(line.decode("utf-8-sig"))
    # ValueError: not UTF-8, not JSON, or an integer of thousands of digits.
    except (ValueError, RecursionError) as error:
        return QuestionLine(number, None, None, f"line {number} is not valid JSON: {error}")
    if not isinstance(record, dict):
        return QuestionLine(number, None, None, f"line {number} is not a JSON object")
    identity, image, question = record.get("id", number), record.get("image"), record.get("question")
    extra = {key: value for key, value in record.items() if key not in ("id", "image", "question")}
    problem = None
    if not isinstance(question, str) or not question.strip():
        problem = f"line {number} has no 'question' text"
    elif image is not None and (not isinstance(image, str) or not image):
        problem = f"line {number}: 'image' is not a path"
    shown_image = image if isinstance(image, str) else None
    return QuestionLine(identity, shown_image, question if isinstance(question, str) else None, problem, extra)


def arriving(stream: BinaryIO, *, most: int) -> Iterator[list[tuple[int, bytes]]]:
    """Yield batches of ``(number, line)``, without waiting for more input; blank lines are counted but skipped.

    A batch contains the lines that have arrived, between one and ``most``. A thread reads the stream, so lines of a
    pipe that stays open and is written slowly are yielded one by one.
    """
    arrived: queue.Queue[tuple[int, bytes] | None] = queue.Queue(maxsize=4 * most)

    def read() -> None:
        number = 0
        try:
            while chunk := stream.readline(MAX_LINE_BYTES + 2):
                number += 1
                # Read and drop the rest of a too long line, so that it is not taken for separate lines.
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
