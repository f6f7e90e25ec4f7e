"""Read Vision-Flan from the Hub: its annotation file, and the archive of its images."""

from __future__ import annotations

import json
import os
import shutil
import stat
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

from m2pt_cli.data.formats import image_names
from m2pt_cli.data.readers import chosen, read_rows
from m2pt_cli.data.validation import ValidationReport
from m2pt_cli.errors import DeviceError, InputError
from m2pt_cli.files.hub import (
    Progress,
    RepoFiles,
    Report,
    cached_folder,
    download,
    free_bytes,
    gigabytes,
    hub_errors,
    list_files,
    require_free,
)

MARKER = "complete.json"


def is_unpacked(folder: Path) -> bool:
    """Whether a whole archive was unpacked into ``folder``."""
    return (folder / MARKER).is_file()


def image_roots(folder: Path) -> tuple[Path, ...]:
    """The folders that image paths are relative to: the archive's only top-level folder, if any, and ``folder``."""
    tops = [entry for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
    return (tops[0], folder) if len(tops) == 1 else (folder,)


def unpack(
    archive: Path | BinaryIO, folder: Path, *, what: str, report: Report, names: Collection[str] | None = None
) -> None:
    """Unpack a zip archive; members that an earlier call has unpacked are skipped.

    All members are checked before anything is written. A file is renamed to its final name when it is complete, and
    the marker file is written when all members are unpacked.

    Args:
        what: the archive's name in messages.
        names: unpack only these members, by their path with or without the top-level folder; None for all.

    Raises:
        InputError: the file is not a zip archive, is damaged or encrypted, or a member is a link, has a reserved name
            or would be written outside ``folder``.
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
        if error.errno is None:  # an HTTP request failed, not the disk
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


REPO = "Vision-Flan/vision-flan_191-task_1k"
ANNOTATION = "annotation_191-task_1k.json"
ARCHIVE = "image_191-task_1k.zip"
# Up to this fraction of the samples, single images are fetched from the archive; above it a full download is faster.
_MAX_FETCHED_FRACTION = 0.05


def read_vision_flan(*, limit: int | None, seed: int, report: Report) -> tuple[list[tuple[int, Any]], tuple[Path, ...]]:
    """Return at most ``limit`` numbered rows, sampled by ``seed``, and the folders of their images.

    Downloads and unpacks what is missing.

    Raises:
        UnavailableError: the download failed.
        DeviceError: the disk is too small for the archive and its images.
        InputError: the annotation or the archive is damaged or unsafe.
    """
    cached = cached_folder(REPO)
    if cached is None or not (cached / ANNOTATION).is_file():
        cached = download(list_files(REPO), ANNOTATION, report=report).parent
    annotation = cached / ANNOTATION
    all_rows = read_rows(annotation, ValidationReport())
    rows = chosen(all_rows, limit, seed)
    folder = images_folder(commit=cached.name)
    needed = None if len(rows) == len(all_rows) else {name for _, row in rows for name in image_names(row)}
    if not is_unpacked(folder) and not (needed is not None and _has_all(folder, needed)):
        _download_images(cached, folder, needed, fraction=len(rows) / len(all_rows), report=report)
    return rows, image_roots(folder)


def images_folder(*, commit: str) -> Path:
    """The folder into which the images of a commit are unpacked."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "m2pt" / REPO.rpartition("/")[2] / commit[:12]


def _download_images(
    cached: Path, folder: Path, needed: Collection[str] | None, *, fraction: float, report: Report
) -> None:
    archive = cached / ARCHIVE
    if not archive.is_file():
        repo = list_files(REPO, commit=cached.name)
        size = repo.size_of(ARCHIVE)
        if needed is not None and fraction <= _MAX_FETCHED_FRACTION:
            _fetch_single(repo, folder, needed, report=report)
            return
        # The images are compressed already: unpacked, they take about as much space as the archive.
        need = size * (1 + fraction)
        report(
            f"vision-flan needs {gigabytes(need)}: {gigabytes(size)} of download and "
            f"{gigabytes(size * fraction)} unpacked in {folder} ({gigabytes(free_bytes(folder))} free)"
        )
        require_free(folder, int(need), what="vision-flan")
        archive = download(repo, ARCHIVE, report=report)
    unpack(archive, folder, what=ARCHIVE, names=needed, report=report)


def _fetch_single(repo: RepoFiles, folder: Path, needed: Collection[str], *, report: Report) -> None:
    """Unpack single members of the archive on the Hub, with range requests for its directory and for each image."""
    from huggingface_hub import HfFileSystem

    size = gigabytes(repo.size_of(ARCHIVE))
    report(f"fetching {len(needed):,} images out of {ARCHIVE} ({size}) without downloading it")
    with hub_errors(repo.repo_id):
        path = f"datasets/{repo.repo_id}@{repo.commit}/{ARCHIVE}"
        with HfFileSystem().open(path, "rb", block_size=1 << 20) as remote:
            unpack(remote, folder, what=ARCHIVE, names=needed, report=report)


def _has_all(folder: Path, names: Collection[str]) -> bool:
    roots = image_roots(folder)
    return all(any((root / name).is_file() for root in roots) for name in names)
