"""Downloads bases and adapters from the Hugging Face Hub; cached copies are found offline. No torch."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from m2pt_cli.errors import AdapterError, M2PTError, UnavailableError
from m2pt_cli.files.adapter_names import CONFIG_FILE, WEIGHTS_FILE
from m2pt_cli.files.hub import first_line, free_bytes, gigabytes, require_free
from m2pt_cli.models.base_files import missing_base_files

Report = Callable[[str], None]

ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE)
# Weights only as safetensors, because a pickle can run code; and the files of configs, tokenizers and processors.
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_TEXTS = (".json", ".jinja", ".txt", ".model")


def fetch_config(repo_id: str) -> Path:
    """Return a folder with the ``config.json`` of a base on the Hub. Raises UnavailableError."""
    from huggingface_hub import hf_hub_download

    cached = _cached_folder(repo_id, "config.json")
    if cached is not None:
        return cached
    with _hub_errors("base", repo_id):
        return Path(hf_hub_download(repo_id, "config.json")).parent


def fetch_base(repo_id: str, *, report: Report | None = None) -> Path:
    """Return the folder of a base on the Hub; only files missing from the cache are downloaded, never a pickle.

    Args:
        report: called with size, folder and free disk space before a download.

    Raises:
        UnavailableError: no such repository, no access, no network, or no safetensors weights in it.
        DeviceError: the disk is too small.
    """
    cached = _cached_folder(repo_id, "config.json")
    if cached is not None and not missing_base_files(cached):
        return cached
    with _hub_errors("base", repo_id):
        return _download(repo_id, _base_files, report)


def fetch_texts(repo_id: str, *, report: Report | None = None) -> Path:
    """Return the folder of a base's configs, tokenizer and processor, without weights. Raises UnavailableError."""
    cached = _cached_folder(repo_id, "config.json")
    if cached is not None and not [name for name in missing_base_files(cached) if not name.endswith(".safetensors")]:
        return cached
    with _hub_errors("base", repo_id):
        return _download(repo_id, _text_files, report)


def fetch_adapter(repo_id: str, *, report: Report | None = None) -> Path:
    """Return the folder of an adapter on the Hub. Raises AdapterError."""
    cached = _cached_folder(repo_id, ADAPTER_FILES[0])
    if cached is not None and all((cached / name).is_file() for name in ADAPTER_FILES):
        return cached
    with _hub_errors("adapter", repo_id):
        return _download(repo_id, _adapter_files, report)


def fetch_chosen(
    repo_id: str,
    choose: Callable[[dict[str, int]], list[str]],
    *,
    what: str,
    found_by: tuple[str, ...],
    is_complete: Callable[[Path], bool],
    report: Report | None = None,
) -> Path:
    """Return the folder of chosen files of a repository, even pickles, for readers that do not run their code.

    Args:
        choose: takes the sizes of all files by name and returns the names to download.
        what: ``adapter`` or ``base``, for messages.
        found_by: files of which a cached copy holds at least one.
        is_complete: whether a cached copy is sufficient.

    Raises:
        M2PTError: as `fetch_base` and `fetch_adapter`.
    """
    for name in found_by:
        cached = _cached_folder(repo_id, name)
        if cached is not None and is_complete(cached):
            return cached
    with _hub_errors(what, repo_id, command=f"hf download {repo_id}"):
        return _download(repo_id, lambda _, sizes: choose(sizes), report)


def _cached_folder(repo_id: str, name: str) -> Path | None:
    """Return the cached snapshot that holds the file ``name``; the caller checks its other files."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        file = try_to_load_from_cache(repo_id, name)
    except HFValidationError:
        return None
    return Path(file).parent if isinstance(file, str) else None


def _download(repo_id: str, choose: Callable[[str, dict[str, int]], list[str]], report: Report | None) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache

    info = HfApi().model_info(repo_id, files_metadata=True)
    sizes = {entry.rfilename: entry.size or 0 for entry in info.siblings or []}
    names = choose(repo_id, sizes)
    lacking = [name for name in names if not isinstance(try_to_load_from_cache(repo_id, name, revision=info.sha), str)]
    cache = Path(constants.HF_HUB_CACHE)
    need = sum(sizes[name] for name in lacking)
    if report is not None:
        report(f"downloading {repo_id}: {gigabytes(need)} to {cache} ({gigabytes(free_bytes(cache))} free)")
    require_free(cache, need, what=repo_id, hint="set HF_HOME to a folder on a larger disk, or use --base nano")
    with _bars_on_a_terminal_only():
        # By branch, not by commit: the cache then records the branch's commit, and the files are found offline.
        return Path(snapshot_download(repo_id, revision="main", allow_patterns=names))


@contextmanager
def _bars_on_a_terminal_only() -> Iterator[None]:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _base_files(repo_id: str, sizes: dict[str, int]) -> list[str]:
    weights = [name for name in sizes if _WEIGHTS.fullmatch(name)]
    if not weights:
        pickles = [name for name in sizes if name.endswith((".bin", ".pt", ".pth"))]
        found = f"only {pickles[0]}, a pickle, which can run code and is not read" if pickles else "no weights at all"
        raise UnavailableError(
            f"{repo_id} holds no model.safetensors: {found}",
            "convert it with save_pretrained and give the folder with --base, or use --base llava-1.5-7b",
        )
    return [*weights, *_text_files(repo_id, sizes)]


def _text_files(repo_id: str, sizes: dict[str, int]) -> list[str]:
    return [name for name in sizes if "/" not in name and name.endswith(_TEXTS)]


def _adapter_files(repo_id: str, sizes: dict[str, int]) -> list[str]:
    lacking = [name for name in ADAPTER_FILES if name not in sizes]
    if lacking:
        is_base = "config.json" in sizes and CONFIG_FILE in lacking
        raise AdapterError(
            f"{repo_id} is not an adapter that m2pt can read: it holds no {lacking[0]}",
            f"give it with --base {repo_id}" if is_base else "check the id on its page",
        )
    return list(ADAPTER_FILES)


@contextmanager
def _hub_errors(what: str, repo_id: str, *, command: str | None = None) -> Iterator[None]:
    """Turn errors of the Hub into M2PTErrors: AdapterError for an adapter, else UnavailableError."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    failure: type[M2PTError] = AdapterError if what == "adapter" else UnavailableError
    command = command or f"hf download {repo_id} --exclude '*.bin'"
    nano = "; or --base nano, which needs no download" if what == "base" else ""
    try:
        yield
    except GatedRepoError:
        raise failure(
            f"the {what} {repo_id} needs its owner's permission",
            f"ask for it on its page, then run: hf auth login{nano}",
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise failure(
            f"there is no {what} {repo_id} on the Hub, or it is private",
            f"check the id; for a private one run: hf auth login{nano}",
        ) from None
    except (OfflineModeIsEnabled, LocalEntryNotFoundError):
        raise failure(
            f"the {what} {repo_id} is not in the cache ({constants.HF_HUB_CACHE}), and the Hub can't be reached",
            f"on a machine with a network: {command}{nano}",
        ) from None
    except EntryNotFoundError as error:
        raise failure(f"the {what} {repo_id} lacks a file: {first_line(error)}", "check the id on its page") from None
    except (HTTPError, OSError) as error:
        raise failure(
            f"the {what} {repo_id} can't be downloaded to {constants.HF_HUB_CACHE}: {first_line(error)}",
            f"run it again (what has arrived is kept), or fetch it with: {command}{nano}",
        ) from None
