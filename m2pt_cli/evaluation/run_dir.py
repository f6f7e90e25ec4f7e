"""The output folder of a run: its journal while it runs, its results at the end."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TextIO

from m2pt_cli.errors import SettingsError
from m2pt_cli.evaluation.task import Example, Prediction, read_rows, write_predictions
from m2pt_cli.files.io import write_json


def answer_key(bench: str, item: Example, run: Mapping[str, Any]) -> str:
    """Return the key of an answer in the journal: a hash of the question, its image's name, and the run's identity.

    Args:
        bench: the benchmark's name, with the suffix ``-shuffled`` in the blind baseline.
        item: the question; its id, its text and the image's name are part of the key.
        run: the identity of the run: fingerprints of base and adapter, and all settings that decide the answers.
    """
    parts = [bench, item.id, item.question, item.image_name, dict(sorted(run.items()))]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True, sort_keys=True).encode()).hexdigest()[:32]


class Journal:
    """Appends answers to a file, and holds all answers that the folder's journals contain.

    Use it as a context manager. `answers` maps keys to predictions; `errors` maps the keys of failed questions to their
    errors: a rerun asks these questions again.

    Args:
        folder: the evaluation directory.
        run: the identity of the run, written to the first line.
        rank: of this process in a distributed run; each process appends to its own file and reads all of them.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any], *, rank: int = 0) -> None:
        self.folder = folder
        self.file = folder / ("journal.jsonl" if rank == 0 else f"journal-{rank}.jsonl")
        self.answers: dict[str, str] = {}
        self.errors: dict[str, str] = {}
        self._run = dict(run)
        self._stream: TextIO | None = None

    def __enter__(self) -> Self:
        _cut_incomplete_line(self.file)
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
        """Read all journals of the folder, with those of other processes."""
        for file in journal_files(self.folder):
            for record in read_records(file):
                if "key" in record:
                    self._store(record["key"], record["prediction"], record["error"])

    def append(self, key: str, *, bench: str, id: str, prediction: str | None, error: str | None) -> None:
        """Write and flush one answer, so that it is not lost if the process is killed."""
        self._write({"key": key, "bench": bench, "id": id, "prediction": prediction, "error": error})
        self._store(key, prediction, error)

    def _store(self, key: str, prediction: str | None, error: str | None) -> None:
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
    """Return the journals of a folder, one per process."""
    return sorted(folder.glob("journal*.jsonl"))


def read_records(file: Path) -> list[dict[str, Any]]:
    """Read the records of a journal; skips incomplete and damaged lines."""
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
    """Return the identity of the run whose journal the folder contains, or None."""
    for file in journal_files(folder):
        for record in read_records(file):
            if isinstance(record.get("run"), dict):
                return record["run"]
    return None


def _cut_incomplete_line(file: Path) -> None:
    """Remove an incomplete last line, which a killed process leaves, so that the next record starts on a new line."""
    if not file.is_file():
        return
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with file.open("r+b") as stream:
            stream.truncate(whole)


RESULTS = "results.json"


class EvaluationFolder:
    """The output directory of one run.

    It contains the journal while the run goes on. Each complete benchmark adds ``predictions-<bench>.jsonl``, and the
    end of the run ``results.json``. The journal is removed last, so that a stop between any two writes loses nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def claim(self, run: Mapping[str, Any], *, overwrite: bool) -> None:
        """Check that this folder is empty or contains this run; with ``overwrite``, remove the files of an older run.

        Args:
            run: the identity of the run, or the part of it that is known so far.

        Raises:
            SettingsError: the folder is a file, or contains other files or another run; the message names the
                settings that differ.
        """
        if self.path.exists() and not self.path.is_dir():
            raise SettingsError(f"--output-dir {self.path} is a file", "name a folder")
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return
        if overwrite:
            self._remove_own_files()
            return
        found = self.run()
        if found is None and self._was_killed_at_start():
            return
        if found is None:
            raise SettingsError(
                f"--output-dir {self.path} is not empty and holds no evaluation of m2pt",
                "name another --output-dir, or --overwrite to write beside what is there",
            )
        differences = [
            f"{name} was {_short(found.get(name))}, now {_short(value)}"
            for name, value in run.items()
            if found.get(name) != value
        ]
        if differences:
            raise SettingsError(
                f"{self.path} holds another evaluation: {'; '.join(differences)}",
                "name another --output-dir, or --overwrite to replace it",
            )

    def require_writable(self) -> None:
        """Check that the folder can be created or written to, and that no other evaluation uses it; changes nothing.

        Raises:
            SettingsError: the check failed.
        """
        self.hold()
        self.release()
        nearest = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        try:
            # Create a file, because os.access tells root that everything is writable.
            with tempfile.TemporaryFile(dir=nearest):
                pass
        except OSError as error:
            raise SettingsError(
                f"--output-dir {self.path} can't be written: {error.strerror}", "name another --output-dir"
            ) from None

    def create(self) -> None:
        """Create the folder. Raises SettingsError if that fails."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(
                f"--output-dir {self.path} can't be written: {error.strerror}", "name another --output-dir"
            ) from None

    def hold(self) -> None:
        """Lock the folder, if it exists, against other evaluations until `release` or the end of the process.

        The operating system removes the lock of a killed run. On systems without ``flock`` (Windows, some network file
        systems), nothing is locked.

        Raises:
            SettingsError: another evaluation holds the lock.
        """
        try:
            import fcntl
        except ImportError:
            return
        if self._lock is not None or not self.path.is_dir():
            return
        folder = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(folder)
            raise SettingsError(
                f"another m2pt eval is writing to {self.path}", "wait for it to end, or name another --output-dir"
            ) from None
        except OSError:
            os.close(folder)
        else:
            self._lock = folder

    def release(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def run(self) -> dict[str, Any] | None:
        """Return the identity of the run in this folder, from its journal or its results; None if there is neither."""
        found = journal_run(self.path)
        if found is not None:
            return found
        results = self.results()
        if results is None or not isinstance(results.get("settings"), dict):
            return None
        adapter = results.get("adapter")
        return {"base": results.get("base"), "adapter": adapter and adapter["fingerprint"], **results["settings"]}

    def results(self) -> dict[str, Any] | None:
        """Return the content of ``results.json``, or None."""
        try:
            content = json.loads((self.path / RESULTS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def predictions_file(self, bench: str) -> Path:
        return self.path / f"predictions-{bench}.jsonl"

    def finished_rows(self, bench: str) -> dict[str, Prediction]:
        """Return the answered predictions of a complete benchmark by id; empty if it is not complete."""
        file = self.predictions_file(bench)
        return {row.id: row for row in read_rows(file) if not row.failed} if file.is_file() else {}

    def write_predictions(self, bench: str, rows: list[Prediction]) -> None:
        write_predictions(self.predictions_file(bench), rows)

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write ``results.json``, then remove the journals, whose answers are all in the predictions files."""
        write_json(self.path / RESULTS, results)
        for file in journal_files(self.path):
            file.unlink()

    def _was_killed_at_start(self) -> bool:
        """Return whether the folder contains only journals without a complete line: a run was killed as it started."""
        journals = journal_files(self.path)
        return set(self.path.iterdir()) == set(journals) and all(b"\n" not in file.read_bytes() for file in journals)

    def _remove_own_files(self) -> None:
        own = [*journal_files(self.path), *self.path.glob("predictions-*.jsonl"), self.path / RESULTS]
        for file in own:
            file.unlink(missing_ok=True)


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 24 else text[:12] + "…"
