"""Paths in a run's ``run.yaml``: independent of the working directory, without the name of the home folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WORKING_DIRECTORY = "working_directory"
# The settings that may name files.
_FIELDS = ("data", "images", "validation", "base")


def shown_working_directory(start: Path, folder: Path) -> str:
    """Return ``start`` as a run in ``folder`` records it: relative, such as ``..``, if the folder is below it."""
    folder = folder.resolve()
    return os.path.relpath(start, folder) if folder.is_relative_to(start) else _shortened(start, folder)


def said_working_directory(content: Mapping[str, Any], file: Path) -> Path | None:
    """Return the folder that the paths of a ``run.yaml`` are relative to; None for an older file without it."""
    said = content.get(WORKING_DIRECTORY)
    return (file.resolve().parent / Path(said).expanduser()).resolve() if isinstance(said, str) else None


def shortened_settings(settings: Mapping[str, Any], start: Path) -> dict[str, Any]:
    """Return settings with absolute paths written as ``./x`` below ``start``, as ``~/x`` below the home folder."""

    def short(name: Any) -> Any:
        if isinstance(name, list):
            return [short(part) for part in name]
        return _shortened(Path(name), start) if isinstance(name, str) and Path(name).is_absolute() else name

    return {key: short(value) if key in _FIELDS else value for key, value in settings.items()}


def located(content: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return the settings of a ``run.yaml`` with absolute paths.

    ``./x`` is relative to the file's ``working_directory``, or to that of this process if it exists only there.
    """
    said = said_working_directory(content, file)
    starts = [*([] if said is None else [said]), Path.cwd()]

    def whole(name: Any) -> Any:
        if isinstance(name, list):
            return [whole(part) for part in name]
        if isinstance(name, str) and name.startswith("~/"):
            return str(Path(name).expanduser())
        if isinstance(name, str) and name.startswith("./"):
            return str(next((start / name for start in starts if (start / name).exists()), starts[0] / name))
        return name

    return {key: whole(value) if key in _FIELDS else value for key, value in content["settings"].items()}


def _shortened(path: Path, start: Path) -> str:
    if path.is_relative_to(start):
        return f"./{path.relative_to(start).as_posix()}"
    home = Path(os.path.expanduser("~"))  # remains "~" if there is none
    if home.is_absolute() and home != Path(home.anchor) and path.is_relative_to(home):
        return f"~/{path.relative_to(home).as_posix()}"
    return str(path)
