"""Archives of images unpacked once, and only within their folder."""

from __future__ import annotations

import json
import os
import shutil
import stat
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

from m2pt_cli.data.hub import Progress, Report, require_free
from m2pt_cli.errors import DeviceError, InputError

MARKER = "complete.json"


def is_unpacked(folder: Path) -> bool:
    """Whether a whole archive was unpacked here."""
    return (folder / MARKER).is_file()


def image_roots(folder: Path) -> tuple[Path, ...]:
    """The folders that images of an archive are named from: its only top folder, if it has one, and itself."""
    tops = [entry for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
    return (tops[0], folder) if len(tops) == 1 else (folder,)


def unpack(
    archive: Path | BinaryIO, folder: Path, *, what: str, report: Report, names: Collection[str] | None = None
) -> None:
    """Unpack a zip archive; what an earlier start has unpacked is left as it is.

    Every member is looked at before anything is written. A file appears under its name only when it is whole, and the
    marker only when all are there.

    Args:
        what: the archive in messages.
        names: only these members, by their path with or without the archive's top folder; None for all.

    Raises:
        InputError: no zip archive, damaged, encrypted, or a member would be written outside ``folder`` or is a link.
        DeviceError: the disk is too small or can't be written.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [info for info in opened.infolist() if not info.is_dir()]
            for info in members:
                _require_safe(info, what)
            if names is not None:
                wanted = set(names)
                members = [i for i in members if i.filename in wanted or i.filename.partition("/")[2] in wanted]
            pending = [info for info in members if not _is_there(folder / info.filename, info.file_size)]
            need = sum(info.file_size for info in pending)
            folder.mkdir(parents=True, exist_ok=True)
            require_free(folder, need, what=f"unpacking {what}")
            if pending:
                report(f"unpacking {len(pending):,} images of {what} to {folder}")
            progress = Progress(f"unpacking {what}", report, total=need)
            for info in pending:
                _write(opened, info, folder / info.filename)
                progress.update(info.file_size)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{what} is damaged: {error}", "delete it and run again: it is downloaded anew") from None
    except OSError as error:
        if error.errno is None:  # a request that failed, not the disk
            raise
        raise DeviceError(
            f"{what} can't be unpacked to {folder}: {error.strerror}", "set HF_HOME to a folder on a larger disk"
        ) from None
    if names is None:
        partial = folder / f".{MARKER}.{os.getpid()}"
        partial.write_text(json.dumps({"archive": what, "files": len(members)}), encoding="utf-8")
        partial.replace(folder / MARKER)


def _require_safe(info: zipfile.ZipInfo, what: str) -> None:
    parts = info.filename.split("/")
    is_link = stat.S_ISLNK(info.external_attr >> 16)
    leaves = info.filename.startswith("/") or ".." in parts or "\\" in info.filename or ":" in parts[0]
    if leaves or is_link or MARKER in parts:
        reason = (
            "is a link" if is_link else "would be written outside its folder" if leaves else "takes a reserved name"
        )
        raise InputError(f"{what} is refused: its member {info.filename!r} {reason}", "don't use this archive")


def _is_there(file: Path, size: int) -> bool:
    try:
        found = os.lstat(file)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == size


def _write(archive: zipfile.ZipFile, info: zipfile.ZipInfo, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name[:200]}.{os.getpid()}")
    try:
        with archive.open(info) as source, open(partial, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
