"""A folder that appears whole or not at all, and never in the place of another."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from m2pt_cli.errors import SettingsError


def check_new_folder(folder: Path) -> None:
    """Refuse an output directory that holds something already, or can't be made.

    Raises:
        SettingsError: it is a file, is not empty, or its parent can't be written.
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
    """A folder to fill, which becomes ``folder`` when the block ends well and vanishes when it fails.

    Raises:
        SettingsError: as `check_new_folder`, or the folder can't be made.
    """
    check_new_folder(folder)
    folder = folder.resolve()  # the target of a link, not the link, is replaced
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        partial.mkdir(parents=True)
    except OSError as error:
        raise SettingsError(
            f"--output-dir {folder} can't be written: {error.strerror}", "name another folder"
        ) from None
    try:
        yield partial
        if folder.is_dir():
            folder.rmdir()
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
