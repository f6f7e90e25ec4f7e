"""The files of a benchmark on the Hub: what the cache holds whole, and what has to be downloaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from m2pt_cli.data import hub
from m2pt_cli.errors import UnavailableError


def download(repo_id: str, patterns: Sequence[str], *, report: Callable[[str], None]) -> list[Path]:
    """The files of a data set that match globs, in their order; only what is missing is fetched.

    Args:
        repo_id: the data set, ``owner/name``.
        patterns: globs over its files; each has to match some.
        report: told size, place and free disk before anything is downloaded.

    Raises:
        UnavailableError: no such data set, no access, no network, or no such file in it.
        DeviceError: the disk is too small.
    """
    cached = cached_files(repo_id, patterns)
    if cached:
        return cached
    try:
        repo = hub.list_files(repo_id)
        names = _matching(list(repo.sizes), patterns)
        if not names:
            raise UnavailableError(f"the data set {repo_id} holds no files {' and '.join(patterns)}")
        return [hub.download(repo, name, report=report) for name in names]
    except UnavailableError as error:
        raise UnavailableError(error.message, _next_step(error.hint or "", repo_id, patterns)) from None


def _next_step(hint: str, repo_id: str, patterns: Sequence[str]) -> str:
    """What to do about a data set that can't be had, in the flags of m2pt eval: its cause comes first."""
    command = f"hf download {repo_id} --repo-type dataset"
    include = " ".join(f"--include '{pattern}'" for pattern in patterns)
    cause = hint.replace("; --data demo needs no network", "").replace("--data", "--source")
    steps = [cause.replace(command, f"{command} {include}")] if cause else []
    return "; ".join([*steps, "--source names another Hub id or a folder", "--bench demo needs none"])


def cached_files(repo_id: str, patterns: Sequence[str]) -> list[Path]:
    """The files of a data set in the local cache that match globs; none where the cache holds only a part.

    A repository's shards are numbered ``-00000-of-00003``: their count says whether all are there.
    """
    folder = hub.cached_folder(repo_id)
    if folder is None:
        return []
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    found = _matching(names, patterns)
    return [folder / name for name in found] if all(_has_all_shards(name, found) for name in found) else []


def _matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Names that match, pattern by pattern; none unless every pattern matches some."""
    by_pattern = [sorted(name for name in names if fnmatch(name, pattern)) for pattern in patterns]
    return [name for matching in by_pattern for name in matching] if all(by_pattern) else []


def _has_all_shards(name: str, names: list[str]) -> bool:
    start, mark, rest = name.rpartition("-of-")
    count = rest[:5]
    if not mark or not count.isdigit():
        return True
    prefix = start.rpartition("-")[0]
    return sum(other.startswith(prefix + "-") and f"-of-{count}" in other for other in names) == int(count)
