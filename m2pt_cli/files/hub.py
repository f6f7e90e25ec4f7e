"""Data sets on the Hub: file lists, downloads and cache lookups, with errors that name the next step."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Self

from m2pt_cli.errors import DeviceError, UnavailableError

Report = Callable[[str], None]

# Often enough to show progress, rarely enough for a log.
_SECONDS_BETWEEN_LINES = 20.0


@dataclass(frozen=True)
class RepoFiles:
    """The files of a data set on the Hub at one commit: sizes in bytes by file name.

    ``revision`` is the revision to request: for the newest commit the branch, so that the cache records the branch's
    commit and finds it again offline.
    """

    repo_id: str
    commit: str
    revision: str
    sizes: dict[str, int]

    def size_of(self, name: str) -> int:
        """Return the size of a file. Raises UnavailableError if the file no longer exists."""
        if name not in self.sizes:
            raise UnavailableError(f"the data set {self.repo_id} holds no {name} any more", "--data FILE --images DIR")
        return self.sizes[name]


def list_files(repo_id: str, *, commit: str | None = None) -> RepoFiles:
    """List the files of a data set, newest or at a commit. Raises UnavailableError: no data set, access or network."""
    from huggingface_hub import HfApi

    with hub_errors(repo_id):
        info = HfApi().dataset_info(repo_id, revision=commit, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    return RepoFiles(repo_id, str(info.sha), commit or "main", sizes)


def cached_folder(repo_id: str) -> Path | None:
    """Return the newest cached snapshot of a data set, complete or not; None if there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, repo_type="dataset", local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def download(repo: RepoFiles, name: str, *, report: Report) -> Path:
    """Download one file of a data set and return its path; an interrupted download is resumed by the next call.

    Args:
        report: called with size, folder and free disk space first, then with the progress.

    Raises:
        UnavailableError: it can't be downloaded.
        DeviceError: the disk is too small.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(repo.repo_id, name, repo_type="dataset", revision=repo.commit)
    if isinstance(cached, str):
        return Path(cached)
    cache = Path(constants.HF_HUB_CACHE)
    need = repo.size_of(name)
    report(f"downloading {name} of {repo.repo_id}: {gigabytes(need)} to {cache} ({gigabytes(free_bytes(cache))} free)")
    require_free(cache, need, what=f"{name} of {repo.repo_id}")
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


def require_free(folder: Path, need: int, *, what: str) -> None:
    """Raise DeviceError if the disk of ``folder`` has less than ``need`` bytes free."""
    free = free_bytes(folder)
    if need > free:
        raise DeviceError(
            f"{what} needs {gigabytes(need)}, and {folder} has {gigabytes(free)} free",
            "set HF_HOME to a folder on a larger disk",
        )


def free_bytes(folder: Path) -> int:
    """Return the free disk space for a folder that may not exist yet, in bytes."""
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def gigabytes(size: float) -> str:
    """Format a size in bytes: ``14.1 GB``, ``3.2 MB``."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Turn errors of the Hub into UnavailableError: what is missing, where it was looked for, what to do."""
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
    """Whether a request failed: an OSError, or an error of the HTTP library, which depends on the hub version."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "requests")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class Progress:
    """Reports lines such as ``images.zip: 3.1 of 36.0 GB, 41 MB/s, 13 min left``, the first after some seconds.

    Args:
        what: name of the download.
        total: total number of bytes; None if unknown.
        initial: bytes that an earlier run has downloaded.
    """

    def __init__(self, what: str, report: Report, *, total: float | None, initial: float = 0) -> None:
        self._what = what
        self._report = report
        self._total = total
        self._done = self._start = initial
        self._began = self._last_report = time.monotonic()

    def update(self, count: float | None = 1) -> None:
        """Add ``count`` downloaded bytes."""
        self._done += count or 0
        now = time.monotonic()
        if now - self._last_report < _SECONDS_BETWEEN_LINES:
            return
        self._last_report = now
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
    """Return the files of a data set that match globs, in the order of the globs; download those not cached.

    Args:
        repo_id: the data set, ``owner/name``.
        patterns: globs over its files; each must match at least one.
        report: called with size, folder and free disk space before a download.

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
    """Return the hint for a data set that is not available, with the flags of m2pt eval; its own hint comes first."""
    command = f"hf download {repo_id} --repo-type dataset"
    include = " ".join(f"--include '{pattern}'" for pattern in patterns)
    cause = hint.replace("; --data demo needs no network", "").replace("--data", "--source")
    steps = [cause.replace(command, f"{command} {include}")] if cause else []
    return "; ".join([*steps, "--source names another Hub id or a folder", "--bench demo needs none"])


def cached_files(repo_id: str, patterns: Sequence[str]) -> list[Path]:
    """Return the cached files of a data set that match globs; none if some are missing.

    Shards are numbered ``-00000-of-00003``, which tells whether all are present.
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
    start, separator, rest = name.rpartition("-of-")
    count = rest[:5]
    if not separator or not count.isdigit():
        return True
    prefix = start.rpartition("-")[0]
    return sum(other.startswith(prefix + "-") and f"-of-{count}" in other for other in names) == int(count)
