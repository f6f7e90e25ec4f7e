"""The evaluation directory: whose it is, what it holds when a benchmark is complete, what a rerun may reuse."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m2pt_cli.errors import SettingsError
from m2pt_cli.evaluation.files import write_json
from m2pt_cli.evaluation.journal import journal_files, journal_run
from m2pt_cli.evaluation.rows import Row, read_rows, write_rows

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
        """Check that this folder is free or holds this very run; ``overwrite`` empties it of an older run's files.

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
        """Keep other evaluations out of the folder, if it is there, until `release` or the end of the process.

        The lock is the operating system's: a killed run leaves none behind. Where there are no such locks (Windows,
        some network file systems), nothing is kept out.

        Raises:
            SettingsError: another evaluation is writing there.
        """
        try:
            import fcntl
        except ImportError:
            return
        if self._held is not None or not self.path.is_dir():
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
            self._held = folder

    def release(self) -> None:
        """Let other evaluations in."""
        if self._held is not None:
            os.close(self._held)
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

    def results(self) -> dict[str, Any] | None:
        """The content of ``results.json``, or None."""
        try:
            content = json.loads((self.path / RESULTS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def predictions_file(self, bench: str) -> Path:
        return self.path / f"predictions-{bench}.jsonl"

    def finished_rows(self, bench: str) -> dict[str, Row]:
        """The answered rows of a complete benchmark by id; empty if it is not complete."""
        file = self.predictions_file(bench)
        return {row.id: row for row in read_rows(file) if not row.failed} if file.is_file() else {}

    def write_predictions(self, bench: str, rows: list[Row]) -> None:
        write_rows(self.predictions_file(bench), rows)

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
