"""The journal of a running evaluation: every answer is on disk when it is produced, and is never asked for twice.

One JSON object per line. The first line, ``{"run": {...}}``, says which run this is; the others are answers,
``{"key", "bench", "id", "prediction", "error"}``. Each process of a shared run appends to a file of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TextIO

from m2pt_cli.evaluation.rows import Item


def answer_key(bench: str, item: Item, run: Mapping[str, Any]) -> str:
    """What an answer is filed under: the question, its words and image, the weights and how they are decoded.

    Args:
        bench: the benchmark's name, with its pass.
        item: the question; the words and the image's name are part of the key.
        run: the identity of the run: fingerprints of base and adapter, template, image fit, decoding.
    """
    parts = [bench, item.id, item.question, item.image_name, dict(sorted(run.items()))]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True, sort_keys=True).encode()).hexdigest()[:32]


class Journal:
    """The answers a folder holds, and a file to append to.

    Use it as a context manager. `answers` maps a key to its prediction; `errors` maps the key of a failed question to
    its error: a rerun asks those again.

    Args:
        folder: the evaluation directory.
        run: the identity of the run, kept in the first line.
        rank: the process in a shared run; each appends to its own file and reads all of them.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any], *, rank: int = 0) -> None:
        self.folder = folder
        self.file = folder / ("journal.jsonl" if rank == 0 else f"journal-{rank}.jsonl")
        self.answers: dict[str, str] = {}
        self.errors: dict[str, str] = {}
        self._run = dict(run)
        self._stream: TextIO | None = None

    def __enter__(self) -> Self:
        _cut_torn_line(self.file)
        self.read()
        self._stream = self.file.open("a", encoding="utf-8", errors="backslashreplace", newline="\n")
        if self._stream.tell() == 0:
            self._write({"run": self._run})
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def read(self) -> None:
        """Take in every journal of the folder, those of other processes too."""
        for file in journal_files(self.folder):
            for record in read_records(file):
                if "key" in record:
                    self._take(record["key"], record["prediction"], record["error"])

    def append(self, key: str, *, bench: str, id: str, prediction: str | None, error: str | None) -> None:
        """Write one answer and hand it to the operating system: a killed process loses nothing written."""
        self._write({"key": key, "bench": bench, "id": id, "prediction": prediction, "error": error})
        self._take(key, prediction, error)

    def _take(self, key: str, prediction: str | None, error: str | None) -> None:
        if prediction is not None and error is None:
            self.answers[key] = prediction
        else:
            self.errors[key] = error or "no answer"

    def _write(self, record: dict[str, Any]) -> None:
        if self._stream is None:
            raise ValueError("the journal is not open")
        self._stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._stream.flush()


def journal_files(folder: Path) -> list[Path]:
    """The journals of a folder, one per process that took part."""
    return sorted(folder.glob("journal*.jsonl"))


def read_records(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal; a torn or damaged line is passed over."""
    records = []
    for line in file.read_bytes().split(b"\n"):
        try:
            record = json.loads(line.decode("utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError):
            continue
        if isinstance(record, dict) and ("run" in record or {"key", "prediction", "error"} <= record.keys()):
            records.append(record)
    return records


def journal_run(folder: Path) -> dict[str, Any] | None:
    """The identity of the run whose journal a folder holds, or None."""
    for file in journal_files(folder):
        for record in read_records(file):
            if isinstance(record.get("run"), dict):
                return record["run"]
    return None


def _cut_torn_line(file: Path) -> None:
    """Cut what a killed process left of its last line, so that the next one starts on a line of its own."""
    if not file.is_file():
        return
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with file.open("r+b") as stream:
            stream.truncate(whole)
