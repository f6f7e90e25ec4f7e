"""Read rows from JSON and JSONL files; errors name the line and what was found."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from m2pt_cli.data.formats import COLUMNS, column_of
from m2pt_cli.data.validation import ValidationReport
from m2pt_cli.errors import InputError

Item = TypeVar("Item")

LINES = (".jsonl", ".ndjson")
SUFFIXES = (".json", *LINES)


def read_rows(file: Path, faults: ValidationReport) -> list[tuple[int, Any]]:
    """Read the rows of a JSON list or of a file of JSON lines, each with its number (of the item, or of the line).

    Args:
        file: ``.json``, ``.jsonl`` or ``.ndjson``; the content decides whether it is a list or lines.
        faults: lines that are not JSON are added here.

    Raises:
        InputError: missing, unreadable, not UTF-8, truncated, not a list, empty, or without the columns of a
            conversation in any row.
    """
    text = read_text(file)
    if file.suffix.lower() in LINES:
        is_whole = is_json_array(text) or (_first_line(text) == "{" and isinstance(_parsed(text), dict))
    else:
        is_whole = not _is_lines(text)
    rows = _read_whole(text, file) if is_whole else _read_lines(text, file, faults)
    if not rows and not faults.total:
        raise InputError(f"{file} holds no samples")
    require_columns([row for _, row in rows], str(file))
    return rows


def is_json_array(text: str) -> bool:
    """Return whether a text is one JSON array, and not JSON lines that are lists."""
    stripped = text.lstrip()
    if not stripped.startswith("["):
        return False
    first, _, rest = stripped.partition("\n")
    return not rest.strip() or not isinstance(_parsed(first), list)


def json_lines(text: str) -> list[str]:
    """Return the lines of a JSON lines text; for one JSON array its members, one per line.

    An invalid array is returned unchanged; parsing its lines then reports the error.
    """
    members = _parsed(text) if is_json_array(text) else None
    if not isinstance(members, list):
        return text.split("\n")
    return [json.dumps(member) for member in members]


def _is_lines(text: str) -> bool:
    """Return whether a text is JSON lines: its first line is a complete object, and more lines follow."""
    if text.lstrip()[:1] != "{":
        return False
    return isinstance(_parsed(_first_line(text)), dict) and not isinstance(_parsed(text), dict)


def _first_line(text: str) -> str:
    return text.lstrip().partition("\n")[0].rstrip()


def _parsed(text: str) -> Any:
    """Return the JSON value of a text; None if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def chosen(items: list[Item], limit: int | None, seed: int) -> list[Item]:
    """Sample at most ``limit`` items by ``seed`` and keep their order; data sets are often sorted by task."""
    if limit is None or len(items) <= limit:
        return items
    return [items[index] for index in sorted(random.Random(seed).sample(range(len(items)), limit))]


def require_columns(rows: Sequence[Any], where: str) -> None:
    """Raise InputError if no row has a conversation column: then the file has another format."""
    objects = [row for row in rows if isinstance(row, Mapping)]
    if not objects or any(column_of(row) is not None for row in objects):
        return
    found = ", ".join(map(str, objects[0])) or "none"
    raise InputError(
        f"{where} has the columns {found}; {' or '.join(COLUMNS)} was expected",
        'each sample: {"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, '
        '{"from": "gpt", "value": "A cat."}]}',
    )


def read_text(file: Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark. Raises InputError."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{file} does not exist", "check the path given to --data") from None
    except OSError as error:
        raise InputError(f"{file} can't be read: {error.strerror}", "check the path given to --data") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file} is not UTF-8 text: byte 0x{content[error.start]:02x} at position {error.start:,}",
            "save it as UTF-8",
        ) from None


def _read_whole(text: str, file: Path) -> list[tuple[int, Any]]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise _not_json(text, file, error) from None
    except RecursionError:
        raise InputError(f"{file} is nested too deeply to be a list of samples") from None
    if isinstance(content, dict) and column_of(content) is not None:
        return [(1, content)]
    if not isinstance(content, list):
        keys = f" with the keys {', '.join(list(content)[:5])}" if isinstance(content, dict) else ""
        raise InputError(
            f"{file} holds a JSON {'object' if isinstance(content, dict) else 'value'}{keys}, not a list of samples",
            "write the samples as a list, or one object a line in a .jsonl file",
        )
    return list(enumerate(content, start=1))


def _read_lines(text: str, file: Path, faults: ValidationReport) -> list[tuple[int, Any]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append((number, json.loads(line)))
        except json.JSONDecodeError as error:
            faults.add(f"{file.name} line {number}", f"not valid JSON: {error.msg} at column {error.colno}")
        except RecursionError:
            faults.add(f"{file.name} line {number}", "nested too deeply")
    return rows


def _not_json(text: str, file: Path, error: json.JSONDecodeError) -> InputError:
    place = f"line {error.lineno}, column {error.colno}"
    if not text.strip():
        return InputError(f"{file} is empty")
    if error.msg == "Extra data":
        return InputError(
            f"{file} holds more than one JSON value: a second begins at {place}",
            f"if it has one object a line, name it {file.stem}.jsonl",
        )
    # The parser fails at the end of a truncated text, or at the start of its unterminated string.
    if not text[error.pos :].strip() or error.msg.startswith("Unterminated string"):
        return InputError(f"{file} is truncated: the JSON breaks off at {place}", "copy or download it again")
    return InputError(f"{file} is not valid JSON: {error.msg} at {place}")
