"""Data sets that the ``datasets`` library reads: ids on the Hub, and folders of parquet, JSON or images.

Only data files are read. A loading script would run its author's code: the library refuses it, and so does this module.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from m2pt_cli.data.readers import require_columns
from m2pt_cli.data.sample import StoredImage
from m2pt_cli.errors import InputError, UnavailableError
from m2pt_cli.files.hub import Report, first_line, gigabytes, hub_errors, list_files

_FILES = {".parquet": "parquet", ".arrow": "arrow", ".csv": "csv"}


@dataclass(frozen=True)
class CellImage(StoredImage):
    """An encoded image in a cell of a data set; read from disk each time it is opened."""

    name: str
    table: Any = field(repr=False, compare=False)  # memory-mapped: a worker process gets its path, not its bytes
    column: str
    row: int
    index: int | None  # the image's index, if the cell is a list of images

    def source(self) -> IO[bytes]:
        """A view of the memory-mapped cell: only the bytes that are read are loaded from disk."""
        import pyarrow

        cell = self.table.column(self.column)[self.row]
        struct = cell if self.index is None else cell.values[self.index]
        return pyarrow.BufferReader(struct["bytes"].as_buffer())


class DataSet:
    """The rows of a data set as dicts; encoded images stay on disk as `CellImage`."""

    def __init__(self, rows: Any, name: str) -> None:
        from datasets import Image, LargeList, List

        self._name = name
        features = rows.features.items()
        self._lists = [n for n, f in features if isinstance(f, (List, LargeList)) and isinstance(f.feature, Image)]
        images = [name for name, feature in features if isinstance(feature, Image)] + self._lists
        self._table = rows.data
        self._columns = {column: rows.data.column(column) for column in images}
        self._other_columns = rows.remove_columns(images)
        self._length = len(rows)
        require_columns([dict.fromkeys(images) | self._other_columns[0]] if self._length else [], name)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> dict[str, Any]:
        row = dict(self._other_columns[number]) if self._other_columns.column_names else {}
        for name, column in self._columns.items():
            cell = column[number]
            if not cell.is_valid:
                row[name] = None
            elif name in self._lists:
                row[name] = [self._image(name, number, index, struct) for index, struct in enumerate(cell.values)]
            else:
                row[name] = self._image(name, number, None, cell)
        return row

    def _image(self, name: str, number: int, index: int | None, struct: Any) -> Any:
        if not struct.is_valid:
            return None
        if not struct["bytes"].is_valid:
            return {"path": struct["path"].as_py()}
        label = f"{self._name} row {number + 1}" + (f" image {index + 1}" if index else "")
        return CellImage(f"{label} ({name})", self._table, name, number, index)


def open_data_set(spec: str, *, report: Report) -> DataSet:
    """Open the ``train`` split of a data set, or its only split.

    Args:
        spec: ``owner/name``, ``owner/name:subset``, or a path: a folder, a ``.parquet``, ``.arrow`` or ``.csv`` file.
        report: called with a line of text before a download.

    Raises:
        InputError: a local data set is damaged or has an unsupported format; or the data set has several splits (none
            called ``train``) or subsets, or needs a loading script.
        UnavailableError: no such data set on the Hub, no access, or no network.
    """
    path = Path(spec)
    if path.exists():
        return DataSet(_local(path), path.name)
    repo_id, _, subset = spec.partition(":")
    refused: UnavailableError | None = None
    try:
        repo = list_files(repo_id)
        report(f"reading {repo_id} ({gigabytes(sum(repo.sizes.values()))} on the Hub)")
    except UnavailableError as error:
        refused = error  # a copy in the cache can still be read
    from datasets import load_dataset

    try:
        with _library_errors(spec), hub_errors(repo_id):
            return DataSet(_split(lambda **options: load_dataset(repo_id, subset or None, **options), spec), repo_id)
    except UnavailableError:
        if refused is not None:
            raise refused from None
        raise


def cache_folders() -> tuple[Path, ...]:
    """The existing cache folders of ``huggingface_hub`` and ``datasets``: images of a Hub data set may be there."""
    from datasets import config
    from huggingface_hub import constants

    folders = (Path(constants.HF_HUB_CACHE), Path(config.HF_DATASETS_CACHE))
    return tuple(folder for folder in folders if folder.is_dir())


def _local(path: Path) -> Any:
    from datasets import load_dataset, load_from_disk

    if path.is_file() and path.suffix.lower() not in _FILES:
        raise InputError(
            f"{path} is of no known kind: {path.suffix or 'no suffix'}",
            "give .json (LLaVA), .jsonl (messages), .parquet, .arrow or .csv",
        )
    with _library_errors(str(path)):
        if path.is_file():
            return load_dataset(_FILES[path.suffix.lower()], data_files=str(path), split="train")
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            loaded = load_from_disk(str(path))
            return _only_split(loaded, str(path)) if isinstance(loaded, dict) else loaded
        return _split(lambda **options: load_dataset(str(path), **options), str(path))


def _split(load: Any, spec: str) -> Any:
    try:
        return load(split="train")
    except ValueError as error:
        if "Unknown split" not in str(error):
            raise
    return _only_split(load(), spec)


def _only_split(splits: dict[str, Any], spec: str) -> Any:
    if "train" in splits:
        return splits["train"]
    if len(splits) == 1:
        return next(iter(splits.values()))
    raise InputError(
        f"{spec} has no split called train, but {', '.join(map(str, splits))}", "save the one you mean as parquet"
    )


@contextmanager
def _library_errors(spec: str) -> Iterator[None]:
    """Raise errors of the ``datasets`` library as M2PTErrors, and disable its progress bars."""
    import datasets
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError, DatasetsError

    had_bars = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    except (DataFilesNotFoundError, EmptyDatasetError):
        raise InputError(f"{spec} holds no data files that can be read", "put .parquet or .jsonl files there") from None
    except DatasetNotFoundError as error:
        raise UnavailableError(first_line(error), "check the id given to --data") from None
    except ConnectionError as error:
        from huggingface_hub import constants

        raise UnavailableError(
            f"the data set {spec} is not in the cache ({constants.HF_HUB_CACHE}), and the Hub can't be reached: "
            f"{first_line(error)}",
            f"on a machine with a network: hf download {spec} --repo-type dataset; --data demo needs no network",
        ) from None
    except RuntimeError as error:
        if "script" not in str(error):
            raise
        raise InputError(
            f"{spec} wants to run a loading script, which is refused: it could run any code",
            "use a data set of data files, such as parquet",
        ) from None
    except ValueError as error:
        if "Config name is missing" not in str(error):
            raise InputError(f"{spec} can't be read: {first_line(error)}") from None
        raise InputError(
            f"{spec} has several subsets: {first_line(error)}", f"name one: --data {spec}:SUBSET"
        ) from None
    except DatasetsError as error:
        raise InputError(f"{spec} can't be read: {first_line(error.__cause__ or error)}") from None
    finally:
        if had_bars:
            datasets.enable_progress_bars()
