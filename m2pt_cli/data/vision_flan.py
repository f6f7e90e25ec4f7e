"""Vision-Flan as the paper uses it: 191 tasks, about 186,000 samples, from the Hub.

Source: Vision-Flan/vision-flan_191-task_1k: an annotation in LLaVA's JSON and one archive of images (36 GB). Both go
into the Hub's cache, the images are unpacked once into ``$HF_HOME/m2pt``; afterwards no network is needed. Few samples
(``--limit``) are read out of the archive where it lies, without downloading it.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from m2pt_cli.data.faults import Faults
from m2pt_cli.data.hub import (
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
from m2pt_cli.data.reading import chosen, read_rows
from m2pt_cli.data.rows import image_names
from m2pt_cli.data.unpacking import image_roots, is_unpacked, unpack

REPO = "Vision-Flan/vision-flan_191-task_1k"
ANNOTATION = "annotation_191-task_1k.json"
ARCHIVE = "image_191-task_1k.zip"
# Up to this share of the samples, single images are fetched out of the archive; beyond it a whole download is faster.
_FETCHED_SHARE = 0.05


def read_vision_flan(*, limit: int | None, seed: int, report: Report) -> tuple[list[tuple[int, Any]], tuple[Path, ...]]:
    """Numbered rows, at most ``limit`` by ``seed``, and the folders in which their images lie.

    Raises:
        UnavailableError: it can't be downloaded.
        DeviceError: the disk is too small for the archive and its images.
        InputError: the annotation or the archive is damaged or unsafe.
    """
    cached = cached_folder(REPO)
    if cached is None or not (cached / ANNOTATION).is_file():
        cached = download(list_files(REPO), ANNOTATION, report=report).parent
    annotation = cached / ANNOTATION
    all_rows = read_rows(annotation, Faults())
    rows = chosen(all_rows, limit, seed)
    folder = images_folder(commit=cached.name)
    needed = None if len(rows) == len(all_rows) else {name for _, row in rows for name in image_names(row)}
    if not is_unpacked(folder) and not (needed is not None and _has_all(folder, needed)):
        _bring_images(cached, folder, needed, share=len(rows) / len(all_rows), report=report)
    return rows, image_roots(folder)


def images_folder(*, commit: str) -> Path:
    """Where the images of a commit are unpacked."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "m2pt" / REPO.rpartition("/")[2] / commit[:12]


def _bring_images(cached: Path, folder: Path, needed: Collection[str] | None, *, share: float, report: Report) -> None:
    archive = cached / ARCHIVE
    if not archive.is_file():
        repo = list_files(REPO, commit=cached.name)
        size = repo.size_of(ARCHIVE)
        if needed is not None and share <= _FETCHED_SHARE:
            _fetch_single(repo, folder, needed, report=report)
            return
        # The images are compressed already: unpacked they take about as much room as the archive.
        need = size * (1 + share)
        report(
            f"vision-flan needs {gigabytes(need)}: {gigabytes(size)} of download and "
            f"{gigabytes(size * share)} unpacked in {folder} ({gigabytes(free_bytes(folder))} free)"
        )
        require_free(folder, int(need), what="vision-flan")
        archive = download(repo, ARCHIVE, report=report)
    unpack(archive, folder, what=ARCHIVE, names=needed, report=report)


def _fetch_single(repo: RepoFiles, folder: Path, needed: Collection[str], *, report: Report) -> None:
    """Unpack single members of the archive on the Hub: its table of contents and each image are range requests."""
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
