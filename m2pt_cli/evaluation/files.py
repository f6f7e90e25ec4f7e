"""Files written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from m2pt_cli.records import to_json


def write_text(file: Path, text: str) -> None:
    """Write a file atomically: a reader, or a run killed at any moment, finds the old content or the new one.

    Halves of surrogate pairs, which are no characters, are written as JSON spells them.
    """
    partial = file.with_name(f".{file.name}.partial")
    with partial.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)


def write_json(file: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically; never NaN."""
    write_text(file, json.dumps(to_json(value), ensure_ascii=False, indent=2, allow_nan=False) + "\n")
