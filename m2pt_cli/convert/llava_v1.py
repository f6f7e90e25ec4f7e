"""Assemble LLaVA v1 from Vicuna, CLIP and the projector; weights are copied one at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from m2pt_cli.convert.llava_v1_parts import (
    PARTS_HINT,
    OriginalParts,
    PartFolders,
    Report,
    fetch_part_texts,
    fetch_parts,
    write_texts,
)
from m2pt_cli.convert.weights import listed, read_weights
from m2pt_cli.errors import DeviceError, UnavailableError
from m2pt_cli.families.geometry import Geometry
from m2pt_cli.files.hub import gigabytes
from m2pt_cli.files.io import new_folder
from m2pt_cli.files.safetensors import Outgoing, can_write, write_tensors
from m2pt_cli.models.base_files import SINGLE, missing_base_files
from m2pt_cli.models.catalog import BaseEntry
from m2pt_cli.records import ImportResult

# Writing this many bytes takes long enough to report progress.
_REPORTED_SIZE = 2_000_000_000


def assembled_folder(entry: BaseEntry) -> Path:
    """The folder of an assembled base of the catalogue: ``$HF_HOME/m2pt/<name>``."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "m2pt" / entry.name


def assembled_base(entry: BaseEntry, *, report: Report | None = None) -> Path:
    """The folder of a catalogue base that is published in parts; the first call downloads and assembles them.

    Several processes may call this at once: one assembles, the others wait.

    Args:
        report: called with lines of text about sizes, folders and free disk space, before anything is downloaded.

    Raises:
        UnavailableError: a part is not available or has unexpected content.
        DeviceError: the disk is too small.
    """
    folder = assembled_folder(entry)
    if not missing_base_files(folder):
        return folder
    sizes = entry.geometry.group_sizes
    need = 2 * sum(sizes.values()) + 2 * sizes["vision_tower"]  # CLIP is stored in fp32, the rest in 16 bits
    _require_disk(folder, need, entry.name)
    if report is not None:
        report(
            f"{entry.name} is assembled, once, from {', '.join(entry.parts)}: "
            f"about {gigabytes(need)} in {folder} ({gigabytes(_free(folder))} free), beside the downloads"
        )
    with _one_at_a_time(folder):
        if missing_base_files(folder):
            parts = fetch_parts(OriginalParts(*entry.parts), report=report)
            geometry = write_texts(parts, folder)
            _require_geometry(geometry, entry)
            _write_weights(parts, geometry, folder, folder, report)
    return folder


def assembled_texts(entry: BaseEntry, *, report: Report | None = None) -> Path:
    """The folder of a base as in `assembled_base`, with config, tokenizer and processor only: a few megabytes.

    Raises:
        UnavailableError: a part is not available or has unexpected content.
    """
    folder = assembled_folder(entry)
    if _lacks_texts(folder):
        with _one_at_a_time(folder):
            if _lacks_texts(folder):
                geometry = write_texts(fetch_part_texts(OriginalParts(*entry.parts), report=report), folder)
                _require_geometry(geometry, entry)
    return folder


def import_base(
    language_model: str, vision_tower: str, projector: str, output_dir: Path, *, report: Report | None = None
) -> ImportResult:
    """Write a base from a Vicuna, a CLIP and a projector that fit each other.

    Args:
        language_model: a folder or a Hub id.
        vision_tower: a folder or a Hub id.
        projector: ``mm_projector.bin``, its folder, or a Hub id.
        output_dir: a new folder.
        report: called with lines of text about downloads, sizes and progress.

    Raises:
        InputError: a local part is missing or lacks a file.
        UnavailableError: a part is not available, is damaged, or does not fit the others.
        DeviceError: the disk is too small.
        SettingsError: the output directory can't be used.
    """
    with new_folder(output_dir) as partial:
        found = fetch_parts(OriginalParts(language_model, vision_tower, projector), report=report)
        geometry = write_texts(found, partial)
        size = _write_weights(found, geometry, partial, output_dir, report)
    return ImportResult(
        output_dir=str(output_dir),
        kind="base",
        base=str(output_dir),
        visual_prompts=None,
        textual_prompts=None,
        lm_head=None,
        trainable=geometry.total_parameters,
        bytes=size,
    )


def _lacks_texts(folder: Path) -> bool:
    return any(name != SINGLE for name in missing_base_files(folder))


def _write_weights(parts: PartFolders, geometry: Geometry, folder: Path, shown_as: Path, report: Report | None) -> int:
    outgoing = list(_outgoing(parts, geometry))
    need = sum(tensor.bytes for tensor in outgoing)
    _require_disk(folder, need, str(shown_as))
    if report is not None:
        report(f"writing {len(outgoing):,} tensors, {gigabytes(need)}, to {shown_as / SINGLE}")
    for stale in folder.glob(f".{SINGLE}.*.partial"):  # left by a process that was killed
        stale.unlink()
    return write_tensors(folder / SINGLE, outgoing, progress=_quarter_progress(need, report))


def _quarter_progress(need: int, report: Report | None) -> Callable[[int], None]:
    """A progress callback that reports each quarter of a large file."""
    reported = 0

    def progress(written: int) -> None:
        nonlocal reported
        if report is not None and need >= _REPORTED_SIZE and 4 * written // need > reported:
            reported = 4 * written // need
            report(f"written: {gigabytes(written)} of {gigabytes(need)}")

    return progress


def _outgoing(parts: PartFolders, geometry: Geometry) -> Iterator[Outgoing]:
    """Yield every weight of the base, read from the part that contains it."""
    assert parts.projector is not None
    sources = {
        "language_model": (parts.language_model, "model.language_model.", "model."),
        "lm_head": (parts.language_model, "lm_head.", "lm_head."),
        "vision_tower": (parts.vision_tower, "model.vision_tower.", "vision_model."),
        "projector": (parts.projector, "model.multi_modal_projector.", "model.mm_projector."),
    }
    read = {path: read_weights(path, _fault) for path in {path for path, _, _ in sources.values()}}
    for weight in geometry.weights():
        path, ours, theirs = sources[weight.group]
        name = theirs + weight.name.removeprefix(ours)
        # In a checkpoint of the vision tower alone, names have no "vision_model." prefix.
        tensor = read[path].get(name, read[path].get(name.removeprefix("vision_model.")))
        if tensor is None:
            raise _fault(f"{path} lacks {name}; it holds {listed(sorted(read[path]))}")
        if tuple(tensor.shape) != weight.shape:
            raise _fault(f"{name} in {path} has shape {list(tensor.shape)}, {list(weight.shape)} is expected")
        if not can_write(tensor.dtype):
            raise _fault(f"{name} in {path} is {tensor.dtype}, not fp32, fp16 or bf16")
        yield Outgoing(weight.name, weight.shape, tensor.dtype, tensor.clone)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        yield


def _fault(message: str) -> UnavailableError:
    return UnavailableError(message, PARTS_HINT)


def _require_geometry(found: Geometry, entry: BaseEntry) -> None:
    if found != entry.geometry:
        raise UnavailableError(
            f"the parts of {entry.name} have changed on the Hub: they no longer have its widths and depths",
            "assemble others: m2pt import --vicuna FOLDER --clip FOLDER --projector FILE --output-dir DIR",
        )


def _require_disk(folder: Path, need: int, what: str) -> None:
    if need > _free(folder):
        raise DeviceError(
            f"{what} needs {gigabytes(need)}, and its disk has {gigabytes(_free(folder))} free",
            "set HF_HOME to a folder on a larger disk, or use --base nano",
        )


def _free(folder: Path) -> int:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free
