"""Atomic writes of files and folders."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from m2pt_cli.errors import SettingsError
from m2pt_cli.records import to_json


def write_text(file: Path, text: str) -> None:
    """Write a file atomically: a reader, or a run killed at any moment, finds the old content or the new one.

    Lone surrogates, which are not valid characters, are written as JSON escapes.
    """
    partial = file.with_name(f".{file.name}.partial")
    with partial.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)


def write_json(file: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically; NaN becomes null."""
    write_text(file, json.dumps(to_json(value), ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def check_new_folder(folder: Path) -> None:
    """Refuse an output directory that is not empty or can't be created.

    Raises:
        SettingsError: it is a file or a dangling link, is not empty, or its parent is not writable.
    """
    if folder.is_symlink() and not folder.exists():
        raise SettingsError(f"--output-dir {folder} is a link to nothing", "name another folder")
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"--output-dir {folder} is a file", "name a folder that is empty or does not exist")
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise SettingsError(f"--output-dir {folder} can't be written", "name another folder with --output-dir")
    if folder.is_dir() and any(folder.iterdir()):
        raise SettingsError(
            f"--output-dir {folder} is not empty", "name a folder that is empty or does not exist, or remove it first"
        )


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``folder`` if the block succeeds and is removed if it fails.

    Raises:
        SettingsError: as `check_new_folder`; the folder can't be created; or another process is writing it.
    """
    from filelock import FileLock, Timeout

    check_new_folder(folder)
    folder = folder.resolve()  # the target of a link, not the link, is replaced
    lock = FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise SettingsError(
            f"another m2pt import is writing --output-dir {folder}", "wait for it to end, or name another folder"
        ) from None
    except OSError as error:
        raise _unwritable(folder, error) from None
    try:
        with _filled(folder) as partial:
            yield partial
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@contextmanager
def _filled(folder: Path) -> Iterator[Path]:
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
        partial.mkdir()
    except OSError as error:
        raise _unwritable(folder, error) from None
    try:
        yield partial
        if folder.is_dir():
            folder.rmdir()
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def hold_folder(folder: Path, command: str) -> int | None:
    """Keep other processes of ``command`` out of a folder until `release_folder` or the end of this process.

    The lock is the operating system's: a killed process leaves none behind. Where there are no such locks (Windows,
    some network file systems), nothing is kept out.

    Returns:
        What `release_folder` takes; None where nothing is held.

    Raises:
        SettingsError: another process is writing there.
    """
    try:
        import fcntl
    except ImportError:
        return None
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise SettingsError(
            f"another {command} is writing to {folder}", "wait for it to end, or name another --output-dir"
        ) from None
    except OSError:
        os.close(held)
        return None
    return held


def release_folder(held: int | None) -> None:
    """Let other processes into a folder that `hold_folder` kept."""
    if held is not None:
        os.close(held)


def _unwritable(folder: Path, error: OSError) -> SettingsError:
    return SettingsError(f"--output-dir {folder} can't be written: {error.strerror}", "name another folder")
