"""The folder of an evaluation: its journal while it runs, its results when it is done."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TextIO

from m2pt_cli.errors import SettingsError
from m2pt_cli.evaluation.task import Example, Prediction, read_rows, write_predictions
from m2pt_cli.files.io import hold_folder, release_folder, write_json


def is_prefix(earlier: int | None, limit: int | None) -> bool:
    """Whether the questions of ``--limit earlier`` are the first of those of ``--limit limit``; None is all of them."""
    return earlier is not None and (limit is None or earlier <= limit)


def answer_key(bench: str, item: Example, run: Mapping[str, Any]) -> str:
    """Return the journal key of an answer: the question, its text and image, the weights and the decoding.

    Args:
        bench: the benchmark's name, with its pass.
        item: the question; the words and the image's name are part of the key.
        run: the identity of the run: fingerprints of base and adapter, template, image fit, decoding. How many
            questions are asked (``limit``) is no part of an answer.
    """
    decisive = {name: value for name, value in sorted(run.items()) if name != "limit"}
    parts = [bench, item.id, item.question, item.image_name, decisive]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True, sort_keys=True).encode()).hexdigest()[:32]


class Journal:
    """The answers a folder holds, and a file to append to.

    Use it as a context manager. `answers` maps a key to its prediction; `errors` maps the key of a failed question to
    its error: a rerun asks those again.

    Args:
        folder: the evaluation directory.
        run: the identity of the run, kept in the first line, and in a later one where ``limit`` has grown.
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
        # A larger --limit goes on in the journal of a smaller one: the last identity is that of the folder.
        if _last_run(self.file) != json.loads(json.dumps(self._run)):
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
    runs = (_last_run(file) for file in journal_files(folder))
    return next((run for run in runs if run is not None), None)


def _last_run(file: Path) -> dict[str, Any] | None:
    runs = [record["run"] for record in read_records(file) if isinstance(record.get("run"), dict)]
    return runs[-1] if runs else None


def _cut_torn_line(file: Path) -> None:
    """Cut what a killed process left of its last line, so that the next one starts on a line of its own."""
    if not file.is_file():
        return
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with file.open("r+b") as stream:
            stream.truncate(whole)


RESULTS = "results.json"


class EvaluationFolder:
    """One run's directory.

    While the run goes on it holds the journal; each complete benchmark adds ``predictions-<bench>.jsonl``, the end
    ``results.json``. The journal is removed last, so that a stop between any two writes loses nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: int | None = None

    def claim(self, run: Mapping[str, Any], *, overwrite: bool) -> None:
        """Check that this folder is free or holds the same run; ``overwrite`` removes an older run's files.

        Args:
            run: what identifies the run, or the part of it that is known so far.

        Raises:
            SettingsError: the folder is a file, holds other things, or another run, whose difference is named.
        """
        if self.path.exists() and not self.path.is_dir():
            raise SettingsError(f"--output-dir {self.path} is a file", "name a folder")
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return
        if overwrite:
            self._remove_own_files()
            return
        found = self.run()
        if found is None and self._was_killed_at_once():
            return
        if found is None and (runs := self.runs_below()):
            first = self.path / runs[0]
            raise SettingsError(
                f"--output-dir {self.path} holds {len(runs)} evaluations, each in a folder of its own: "
                + ", ".join(runs),
                f"go on with one of them by --output-dir {first}, or name all of its adapters",
            )
        if found is None:
            raise SettingsError(
                f"--output-dir {self.path} is not empty and holds no evaluation of m2pt",
                "name another --output-dir, or --overwrite to write beside what is there",
            )
        differences = [
            f"{name} was {_short(found.get(name))}, now {_short(value)}"
            for name, value in run.items()
            if found.get(name) != value and not (name == "limit" and is_prefix(found.get(name), value))
        ]
        if differences:
            raise SettingsError(
                f"{self.path} holds another evaluation: {'; '.join(differences)}",
                "name another --output-dir, or --overwrite to replace it",
            )

    def require_writable(self) -> None:
        """Check that the folder can be made, or written to, and that nobody writes there; leave nothing behind.

        Raises:
            SettingsError: it can't.
        """
        self.hold()
        self.release()
        nearest = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        try:
            # A file is the proof: os.access tells root that all may be written.
            with tempfile.TemporaryFile(dir=nearest):
                pass
        except OSError as error:
            raise SettingsError(
                f"--output-dir {self.path} can't be written: {error.strerror}", "name another --output-dir"
            ) from None

    def create(self) -> None:
        """Make the folder. Raises SettingsError where that fails."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(
                f"--output-dir {self.path} can't be written: {error.strerror}", "name another --output-dir"
            ) from None

    def hold(self) -> None:
        """Keep other evaluations out of the folder, if it is there, until `release`; see `hold_folder`.

        Raises:
            SettingsError: another evaluation is writing there.
        """
        if self._held is None and self.path.is_dir():
            self._held = hold_folder(self.path, "m2pt eval")

    def release(self) -> None:
        """Release the folder for other evaluations."""
        release_folder(self._held)
        self._held = None

    def run(self) -> dict[str, Any] | None:
        """The identity of the run this folder holds, from its journal or its results; None if there is neither."""
        found = journal_run(self.path)
        if found is not None:
            return found
        results = self.results()
        if results is None or not isinstance(results.get("settings"), dict):
            return None
        adapter = results.get("adapter")
        return {"base": results.get("base"), "adapter": adapter and adapter["fingerprint"], **results["settings"]}

    def runs_below(self) -> list[str]:
        """The names of the runs of an evaluation of several adapters, which have a folder each."""
        folders = sorted(entry for entry in self.path.iterdir() if entry.is_dir())
        return [folder.name for folder in folders if EvaluationFolder(folder).run() is not None]

    def results(self) -> dict[str, Any] | None:
        """The content of ``results.json``, or None."""
        try:
            content = json.loads((self.path / RESULTS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def predictions_file(self, bench: str) -> Path:
        return self.path / f"predictions-{bench}.jsonl"

    def finished_rows(self, bench: str) -> dict[str, Prediction]:
        """The answered rows of a complete benchmark by id; empty if it is not complete."""
        file = self.predictions_file(bench)
        return {row.id: row for row in read_rows(file) if not row.failed} if file.is_file() else {}

    def write_predictions(self, bench: str, rows: list[Prediction]) -> None:
        write_predictions(self.predictions_file(bench), rows)

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write ``results.json``, then drop the journals: all they held is in the predictions."""
        write_json(self.path / RESULTS, results)
        for file in journal_files(self.path):
            file.unlink()

    def _was_killed_at_once(self) -> bool:
        """Whether all that is here are journals without a whole line: a run that was killed before it wrote one."""
        journals = journal_files(self.path)
        return set(self.path.iterdir()) == set(journals) and all(b"\n" not in file.read_bytes() for file in journals)

    def _remove_own_files(self) -> None:
        own = [*journal_files(self.path), *self.path.glob("predictions-*.jsonl"), self.path / RESULTS]
        for file in own:
            file.unlink(missing_ok=True)


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 24 else text[:12] + "…"
