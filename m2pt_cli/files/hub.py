"""Data sets on the Hub: file lists, downloads and the cache; errors name the next step."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Self

from m2pt_cli.errors import DeviceError, UnavailableError
from m2pt_cli.records import format_bytes

Report = Callable[[str], None]
# ``owner/name`` of a repository.
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

# Seconds between progress lines: frequent enough to show progress, rare enough for a log.
_SECONDS_BETWEEN_LINES = 20.0


@dataclass(frozen=True)
class RepoFiles:
    """The files of a data set on the Hub at one commit: sizes in bytes by file name.

    ``revision`` is the revision to request: the branch for the newest commit, so that the cache maps it to a commit
    and finds it offline.
    """

    repo_id: str
    commit: str
    revision: str
    sizes: dict[str, int]

    def size_of(self, name: str) -> int:
        """Return the size of a file. Raises UnavailableError if it does not exist any more."""
        if name not in self.sizes:
            raise UnavailableError(f"the data set {self.repo_id} holds no {name} any more", "--data FILE --images DIR")
        return self.sizes[name]


def list_files(repo_id: str, *, commit: str | None = None) -> RepoFiles:
    """Return a data set's files, now or at a commit. Raises UnavailableError: no such data set, access or network."""
    from huggingface_hub import HfApi

    with hub_errors(repo_id):
        info = HfApi().dataset_info(repo_id, revision=commit, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    return RepoFiles(repo_id, str(info.sha), commit or "main", sizes)


def cached_folder(repo_id: str) -> Path | None:
    """Return the newest snapshot of a data set in the local cache, complete or not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, repo_type="dataset", local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def download(repo: RepoFiles, name: str, *, report: Report) -> Path:
    """Download one file of a data set; after a broken connection, the next call resumes the partial download.

    Args:
        report: called with a line about size, path and free disk, then with progress lines.

    Raises:
        UnavailableError: it can't be downloaded.
        DeviceError: the disk has too little space.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    held = try_to_load_from_cache(repo.repo_id, name, repo_type="dataset", revision=repo.commit)
    if isinstance(held, str):
        return Path(held)
    place = Path(constants.HF_HUB_CACHE)
    need = repo.size_of(name)
    report(f"downloading {name} of {repo.repo_id}: {gigabytes(need)} to {place} ({gigabytes(free_bytes(place))} free)")
    require_free(place, need, what=f"{name} of {repo.repo_id}")
    with hub_errors(repo.repo_id):
        return Path(
            hf_hub_download(
                repo.repo_id,
                name,
                repo_type="dataset",
                revision=repo.revision,
                tqdm_class=_progress_class(name, report),
            )
        )


def require_free(place: Path, need: int, *, what: str, hint: str = "set HF_HOME to a folder on a larger disk") -> None:
    """Raise DeviceError if ``place`` has less than ``need`` bytes free."""
    free = free_bytes(place)
    if need > free:
        raise DeviceError(
            f"{what} needs {gigabytes(need)}, and {place} has {gigabytes(free)} free",
            hint,
        )


def free_bytes(place: Path) -> int:
    """Return the free bytes of the disk of a folder, which may not exist yet."""
    return shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.exists())).free


def gigabytes(size: float) -> str:
    """Format a size: ``14.1 GB``, ``3.2 MB``."""
    return format_bytes(size)


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Convert the Hub's errors to UnavailableError: what is missing, where it was looked for, the next step."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    command = f"hf download {repo_id} --repo-type dataset"
    demo = "--data demo needs no network"
    try:
        yield
    except GatedRepoError:
        raise UnavailableError(
            f"the data set {repo_id} needs its owner's permission", "ask for it on its page, then run: hf auth login"
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise UnavailableError(
            f"there is no data set {repo_id} on the Hub, or it is private",
            "check the id given to --data; for a private one run: hf auth login",
        ) from None
    except (OfflineModeIsEnabled, LocalEntryNotFoundError):
        raise UnavailableError(
            f"the data set {repo_id} is not in the cache ({constants.HF_HUB_CACHE}), and the Hub can't be reached",
            f"on a machine with a network: {command}; {demo}",
        ) from None
    except EntryNotFoundError as error:
        raise UnavailableError(f"the data set {repo_id} lacks a file: {first_line(error)}", command) from None
    except Exception as error:
        if not is_network_error(error):
            raise
        raise UnavailableError(
            f"the data set {repo_id} can't be downloaded to {constants.HF_HUB_CACHE}: {first_line(error)}",
            f"run it again (what has arrived is kept), or fetch it with: {command}; {demo}",
        ) from None


def is_network_error(error: BaseException) -> bool:
    """Return whether a request failed: an OSError, or the HTTP library's error, which depends on the hub version."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "requests")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class Progress:
    """Reports lines such as ``images.zip: 3.1 of 36.0 GB, 41 MB/s, 13 min left``, the first after some seconds.

    Args:
        what: the name at the start of each line.
        total: bytes in all; None if unknown.
        initial: bytes that an earlier start has downloaded.
    """

    def __init__(self, what: str, report: Report, *, total: float | None, initial: float = 0) -> None:
        self._what = what
        self._report = report
        self._total = total
        self._done = self._start = initial
        self._began = self._said = time.monotonic()

    def update(self, count: float | None = 1) -> None:
        """Count ``count`` more bytes."""
        self._done += count or 0
        now = time.monotonic()
        if now - self._said < _SECONDS_BETWEEN_LINES:
            return
        self._said = now
        speed = (self._done - self._start) / (now - self._began)
        line = f"{self._what}: {gigabytes(self._done)}"
        if self._total:
            minutes = (self._total - self._done) / max(speed, 1) / 60
            line += f" of {gigabytes(self._total)}, {speed / 1e6:.0f} MB/s, {minutes:.0f} min left"
        self._report(line)


def _progress_class(name: str, report: Report) -> Any:
    """Return a progress bar class for huggingface_hub that reports lines instead of drawing a bar."""

    class Bar(Progress):
        def __init__(self, *args: Any, total: float | None = None, initial: float = 0, **options: Any) -> None:
            super().__init__(name, report, total=total, initial=initial)

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *error: object) -> None:
            self.close()

        def close(self) -> None:
            """Do nothing: nothing is open."""

        def set_description(self, *args: Any, **options: Any) -> None:
            """Do nothing: every line contains the name."""

        def refresh(self, *args: Any, **options: Any) -> None:
            """Do nothing: nothing is drawn."""

    return Bar


def download_matching(repo_id: str, patterns: Sequence[str], *, report: Callable[[str], None]) -> list[Path]:
    """Return the files of a data set that match globs, in the globs' order, and download those that are missing.

    Args:
        repo_id: the data set, ``owner/name``.
        patterns: globs over its files; each must match at least one.
        report: called with a line about size, path and free disk before anything is downloaded.

    Raises:
        UnavailableError: no such data set, no access, no network, or no such file in it.
        DeviceError: the disk is too small.
    """
    cached = cached_files(repo_id, patterns)
    if cached:
        return cached
    try:
        repo = list_files(repo_id)
        names = _matching(list(repo.sizes), patterns)
        if not names:
            raise UnavailableError(f"the data set {repo_id} holds no files {' and '.join(patterns)}")
        return [download(repo, name, report=report) for name in names]
    except UnavailableError as error:
        raise UnavailableError(error.message, _next_step(error.hint or "", repo_id, patterns)) from None


def _next_step(hint: str, repo_id: str, patterns: Sequence[str]) -> str:
    """Return the next step for a data set that is not available: the cause's hint, then the flags of m2pt eval."""
    command = f"hf download {repo_id} --repo-type dataset"
    include = " ".join(f"--include '{pattern}'" for pattern in patterns)
    cause = hint.replace("; --data demo needs no network", "").replace("--data", "--source")
    steps = [cause.replace(command, f"{command} {include}")] if cause else []
    return "; ".join([*steps, "--source names another Hub id or a folder", "--bench demo needs none"])


def cached_files(repo_id: str, patterns: Sequence[str]) -> list[Path]:
    """Return the files of a data set in the local cache that match globs; none if the cache holds only some of them.

    A repository's shards are numbered ``-00000-of-00003``: the count in the name tells whether all are there.
    """
    folder = cached_folder(repo_id)
    if folder is None:
        return []
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    found = _matching(names, patterns)
    return [folder / name for name in found] if all(_has_all_shards(name, found) for name in found) else []


def _matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Return the names that match, pattern by pattern; none unless every pattern matches at least one."""
    by_pattern = [sorted(name for name in names if fnmatch(name, pattern)) for pattern in patterns]
    return [name for matching in by_pattern for name in matching] if all(by_pattern) else []


def _has_all_shards(name: str, names: list[str]) -> bool:
    start, mark, rest = name.rpartition("-of-")
    count = rest[:5]
    if not mark or not count.isdigit():
        return True
    prefix = start.rpartition("-")[0]
    return sum(other.startswith(prefix + "-") and f"-of-{count}" in other for other in names) == int(count)
