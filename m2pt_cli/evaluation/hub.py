"""Files of data sets on the Hugging Face Hub: downloaded once, found again offline, failures in words."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

from m2pt_cli.errors import UnavailableError


def download(repo_id: str, pattern: str, *, report: Callable[[str], None]) -> list[Path]:
    """The files of a data set that match a glob, in order of their names; only what is missing is fetched.

    Args:
        repo_id: the data set, ``owner/name``.
        pattern: a glob over its files.
        report: told size, place and free disk before anything is downloaded.

    Raises:
        UnavailableError: no such data set, no access, no network, or no such file in it.
    """
    cached = cached_files(repo_id, pattern)
    if cached:
        return cached
    from huggingface_hub import HfApi, constants, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    # OSError, and the root of the HTTP client's own errors, whichever client this version of the library is built on.
    network_errors: tuple[type[BaseException], ...] = HfHubHTTPError.__bases__
    where = f"the data set {repo_id}"
    command = f"hf download {repo_id} --repo-type dataset --include '{pattern}'"
    try:
        info = HfApi().dataset_info(repo_id, files_metadata=True)
        sizes = {entry.rfilename: entry.size or 0 for entry in info.siblings or []}
        names = sorted(name for name in sizes if fnmatch(name, pattern))
        if not names:
            raise UnavailableError(f"{where} holds no file {pattern}", "name another one with --source")
        place = Path(constants.HF_HUB_CACHE)
        free = shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.exists())).free
        need = sum(sizes[name] for name in names)
        report(f"downloading {repo_id}: {len(names)} files, {_gigabytes(need)}, to {place} ({_gigabytes(free)} free)")
        if need > free:
            raise UnavailableError(
                f"{where} needs {_gigabytes(need)}, and {place} has {_gigabytes(free)} free",
                "set HF_HOME to a folder on a larger disk",
            )
        return [Path(hf_hub_download(repo_id, name, repo_type="dataset", revision=info.sha)) for name in names]
    except GatedRepoError:
        raise UnavailableError(
            f"{where} needs its owner's permission", "ask for it on its page, then: hf auth login"
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise UnavailableError(
            f"there is no data set {repo_id} on the Hub, or no access to it", "check the name given to --source"
        ) from None
    except (OfflineModeIsEnabled, LocalEntryNotFoundError):
        raise UnavailableError(
            f"{where} is not in the cache ({constants.HF_HUB_CACHE}), and the Hub is offline",
            f"on a machine with a network: {command}; or --bench demo, which needs none",
        ) from None
    except EntryNotFoundError as error:
        raise UnavailableError(f"{where} has lost a file: {_first_line(error)}", command) from None
    except network_errors as error:
        raise UnavailableError(
            f"{where} can't be downloaded: {_first_line(error)}", "run it again: what has arrived is kept"
        ) from None


def cached_files(repo_id: str, pattern: str) -> list[Path]:
    """The files of a data set in the local cache that match a glob; none where the cache holds only a part.

    A repository's shards are numbered ``-00000-of-00003``: their count says whether all are there.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo_id, repo_type="dataset", local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return []
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    found = [name for name in names if fnmatch(name, pattern)]
    if not found or not all(_has_all_shards(name, found) for name in found):
        return []
    return [folder / name for name in found]


def _has_all_shards(name: str, names: list[str]) -> bool:
    start, mark, rest = name.rpartition("-of-")
    count = rest[:5]
    if not mark or not count.isdigit():
        return True
    prefix = start.rpartition("-")[0]
    return sum(other.startswith(prefix + "-") and f"-of-{count}" in other for other in names) == int(count)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [error.__class__.__name__])[0]
