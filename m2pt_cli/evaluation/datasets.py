"""Read benchmark data sets: parquet tables and JSON lines, from a folder or the Hub, validated before use."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2pt_cli.data.readers import is_json_array
from m2pt_cli.data.sample import ImageReference, decode_image
from m2pt_cli.data.validation import InvalidRow
from m2pt_cli.errors import InputError
from m2pt_cli.evaluation import validators
from m2pt_cli.evaluation.task import TaskOptions
from m2pt_cli.files.hub import download_matching

if TYPE_CHECKING:
    import pyarrow
    from PIL.Image import Image

# A valid data set id on the Hub.
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_DATA_FILES = frozenset((".parquet", ".json", ".jsonl", ".zip", ".tar", ".tgz", ".gz", ".7z"))


@dataclass(frozen=True)
class Table:
    """The parquet files of one split, and the columns a benchmark reads.

    Attributes:
        repo_id: id of the data set on the Hub.
        patterns: its files in the repository, as globs; rows keep their order.
        columns: columns to read; the image column becomes an `ImageReference`.
        image: name of the image column.
        optional: columns that are read if present.
        label_names: whether class labels are read as names, or as numbers.
        checks: validators by column; rows that fail are named in the error.
        classes: class names of a label column, in order; they detect another data set with the same columns.
    """

    repo_id: str
    patterns: tuple[str, ...]
    columns: tuple[str, ...]
    image: str = "image"
    optional: tuple[str, ...] = ()
    label_names: bool = True
    checks: Mapping[str, validators.Check] = field(default_factory=dict)
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def with_columns(self, *columns: str) -> Table:
        """Return this table with more columns."""
        return dataclasses.replace(self, columns=(*self.columns, *columns))

    def rows(self, request: TaskOptions) -> list[dict[str, Any]]:
        """Return the first ``request.limit`` rows as mappings; class labels as their names.

        Raises:
            UnavailableError: the data set is unavailable.
            InputError: no such files in a folder, an unreadable file, a missing column, or invalid cells.
        """
        rows: list[dict[str, Any]] = []
        for file in self.files(request):
            wanted = None if request.limit is None else request.limit - len(rows)
            if wanted == 0:
                break
            rows += self._read(file, wanted)
        return rows

    def files(self, request: TaskOptions) -> list[Path]:
        """Return the files of this split, from ``--source`` or the Hub, sorted by name."""
        source = local_source(request.source)
        if source is not None and source.is_dir():
            # A copy of the repository, its files in one folder, or any parquet files with its columns.
            flat = [pattern.rpartition("/")[2] for pattern in self.patterns]
            for patterns in (self.patterns, flat, ("*.parquet",)):
                found = [file for pattern in patterns for file in sorted(source.glob(pattern))]
                if found:
                    return found
            raise InputError(
                f"{source} holds no {' or '.join(self.patterns)}", f"--source takes a folder like {self.repo_id}"
            )
        if source is not None and source.is_file() and source.suffix == ".parquet":
            return [source]
        if source is not None:
            raise InputError(
                f"--source {source} is neither a folder nor a parquet file",
                f"unpack an archive first; a folder holds files like those of {self.repo_id}: {self.patterns[0]}",
            )
        return download_matching(request.source or self.repo_id, self.patterns, report=request.report)

    def _read(self, file: Path, most: int | None) -> list[dict[str, Any]]:
        import pyarrow
        import pyarrow.parquet

        try:
            parquet = pyarrow.parquet.ParquetFile(file)
            missing = [name for name in self.columns if name not in parquet.schema_arrow.names]
            if missing:
                raise InputError(
                    f"{file.name} has no column {', '.join(missing)}; it has {', '.join(parquet.schema_arrow.names)}",
                    f"the columns of {self.repo_id} were expected: {', '.join(self.columns)}",
                )
            self._require_classes(file, class_names(parquet.schema_arrow))
            optional = [name for name in self.optional if name in parquet.schema_arrow.names]
            read = [name for name in (*self.columns, *optional) if name != self.image]
            rows: list[dict[str, Any]] = parquet.read(columns=read).slice(0, most).to_pylist()
            counts = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        except (OSError, pyarrow.ArrowException) as error:
            raise InputError(f"{file} is no readable parquet file: {_first_line(error)}") from None
        for column, names in class_names(parquet.schema_arrow).items() if self.label_names else ():
            for row in rows:
                if column in row and isinstance(row[column], int) and 0 <= row[column] < len(names):
                    row[column] = names[row[column]]
        found = [(number, fault) for number, row in enumerate(rows) for fault in validators.faults(row, self.checks)]
        if found:
            listed = validators.several([f"row {number + 1}: {fault}" for number, fault in found])
            raise InputError(f"{file} holds what can't be asked or scored (the first row is 1): {listed}")
        places = [(group, index) for group, count in enumerate(counts) for index in range(count)][: len(rows)]
        for number, (row, (group, index)) in enumerate(zip(rows, places, strict=True)):
            row[self.image] = ParquetImage(file, self.image, group, index, f"{file.stem}/{number}")
        return rows

    def _require_classes(self, file: Path, found: Mapping[str, Sequence[str]]) -> None:
        for column, names in self.classes.items():
            stored = [name.strip().lower() for name in found.get(column, ())]
            others = sum(name != known for name, known in zip(stored, names, strict=False))
            # The Hub's copy of CIFAR-100 misspells one of 100 names.
            if stored and (len(stored) != len(names) or others > len(names) // 50):
                raise InputError(
                    f"{file.name} has the classes {', '.join(stored[:5])}, … in its column {column}: "
                    f"it is not {self.repo_id}",
                    f"the classes {', '.join(names[:5])}, … were expected",
                )


@dataclass(frozen=True)
class ParquetImage:
    """An image inside a parquet file, in a column of ``{"bytes", "path"}``."""

    file: Path
    column: str
    group: int
    index: int
    name: str

    def open(self) -> Image:
        """Return the image in RGB. Raises InputError if it can't be decoded."""
        import pyarrow

        try:
            cell = _group(self.file, self.column, self.group)[self.index].as_py()
        except (OSError, pyarrow.ArrowException) as error:
            raise InputError(f"image {self.name} can't be read: {_first_line(error)}") from None
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not content or not isinstance(content, bytes):
            raise InputError(f"image {self.name} is empty")
        return decode_image(self.name, BytesIO(content))


@lru_cache(maxsize=4)
def _group(file: Path, column: str, group: int) -> pyarrow.ChunkedArray:
    """Return the images of one row group; cached, because neighbouring images are read in succession."""
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(file).read_row_group(group, columns=[column]).column(0)


class SharedImages:
    """Give rows with the same image the same reference, so that its questions are answered together."""

    def __init__(self) -> None:
        self._known: dict[str, ImageReference] = {}

    def one(self, name: str, image: ParquetImage) -> ImageReference:
        """Return the first reference registered under ``name``."""
        return self._known.setdefault(name, dataclasses.replace(image, name=name))


def class_names(schema: pyarrow.Schema) -> dict[str, list[str]]:
    """Return class names by label column; the datasets library keeps them in the schema's metadata."""
    try:
        stored = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {
        column: [str(name) for name in feature["names"]]
        for column, feature in stored.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
    }


def local_source(source: str | None) -> Path | None:
    """Return ``--source`` as an existing path; None if it is not given or is a Hub id.

    Raises:
        InputError: it can only be a path, and does not exist.
    """
    if source is None:
        return None
    if os.path.exists(source):  # Path.exists raises for names too long for the file system; this returns False
        return Path(source)
    if source[:1] in ("/", ".", "~") or Path(source).suffix in _DATA_FILES or not _HUB_ID.fullmatch(source):
        raise InputError(f"--source {source} is not there", "name a folder, or a data set of the Hub: OWNER/NAME")
    return None


def local_files(source: str | None, pattern: str) -> list[Path]:
    """Return the files of a ``--source`` folder; none if it is not a folder."""
    folder = local_source(source)
    return sorted(folder.glob(pattern)) if folder is not None and folder.is_dir() else []


def read_json_objects(
    file: Path,
    checks: Mapping[str, validators.Check],
    *,
    prepare: Callable[[dict[str, Any]], dict[str, Any]] = lambda row: row,
) -> list[dict[str, Any]]:
    """Read the objects of a file of JSON lines, or of one JSON array; each must have valid values for all ``checks``.

    Args:
        prepare: converts an object before it is checked; raises InvalidRow with the reason if it is invalid.

    Raises:
        InputError: the file can't be read, or has invalid lines (or members); at most 20 are listed by number.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        is_array = is_json_array(text)
        lines = json.loads(text) if is_array else text.split("\n")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} can't be read: {getattr(error, 'strerror', None) or error}") from None
    unit = "object" if is_array else "line"
    rows, bad = [], []
    for number, line in enumerate(lines, start=1):
        if not is_array and not line.strip():
            continue
        try:
            row = line if is_array else json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            bad.append(f"{unit} {number} is not valid JSON")
            continue
        if isinstance(row, list):
            bad.append(f"{unit} {number} is a list, an object was expected")
            continue
        try:
            row = prepare(row) if isinstance(row, dict) else row
        except InvalidRow as fault:
            bad.append(f"{unit} {number}: {fault}")
            continue
        missing = [key for key in checks if not isinstance(row, dict) or key not in row]
        if missing:
            bad.append(f"{unit} {number} has no {', '.join(missing)}")
        elif found := validators.faults(row, checks):
            bad.append(f"{unit} {number}: {', '.join(found)}")
        else:
            rows.append(row)
    if bad:
        raise InputError(f"{file} holds {len(bad)} bad {unit}s: {validators.several(bad)}")
    return rows


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [error.__class__.__name__])[0]
