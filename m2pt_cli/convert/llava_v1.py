"""LLaVA v1 assembled from Vicuna, CLIP and the projector: weights one at a time."""

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

# Writing this much takes long enough to say how far it is.
_LARGE = 2_000_000_000


def assembled_folder(entry: BaseEntry) -> Path:
    """Where an assembled base of the catalogue is kept: ``$HF_HOME/m2pt/<name>``."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "m2pt" / entry.name


def assembled_base(entry: BaseEntry, *, report: Report | None = None) -> Path:
    """The folder of a base of the catalogue that comes in parts; the first call fetches and assembles them.

    Several processes may call at once: one assembles, the others wait.

    Args:
        report: told sizes, places and free disk before anything is fetched or written.

    Raises:
        UnavailableError: a part can't be had, or is not what it should be.
        DeviceError: the disk is too small.
    """
    folder = assembled_folder(entry)
    if not missing_base_files(folder):
        return folder
    sizes = entry.geometry.group_sizes
    need = 2 * sum(sizes.values()) + 2 * sizes["vision_tower"]  # CLIP comes in four bytes a value, the rest in two
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
    """The folder of such a base's config, tokenizer and processor: a few megabytes, no weights.

    Raises:
        UnavailableError: a part can't be had, or is not what it should be.
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
    """Write a base from any Vicuna, CLIP and projector that fit each other, each a folder or a Hub id.

    Raises:
        InputError: a local part is missing or lacks a file.
        UnavailableError: a part can't be had, is damaged, or does not fit the others.
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
    for stale in folder.glob(f".{SINGLE}.*.partial"):  # of a process that was killed
        stale.unlink()
    return write_tensors(folder / SINGLE, outgoing, progress=_quarters(need, report))


def _quarters(need: int, report: Report | None) -> Callable[[int], None]:
    """Reports every quarter of a file that takes minutes."""
    said = 0

    def progress(written: int) -> None:
        nonlocal said
        if report is not None and need >= _LARGE and 4 * written // need > said:
            said = 4 * written // need
            report(f"written: {gigabytes(written)} of {gigabytes(need)}")

    return progress


def _outgoing(parts: PartFolders, geometry: Geometry) -> Iterator[Outgoing]:
    """Every weight of the base, each from the part that holds it."""
    assert parts.projector is not None
    sources = {
        "language_model": (parts.language_model, "model.language_model.", "model."),
        "lm_head": (parts.language_model, "lm_head.", "lm_head."),
        "vision_tower": (parts.vision_tower, "model.vision_tower.", "vision_model."),
        "projector": (parts.projector, "model.multi_modal_projector.", "model.mm_projector."),
    }
    read = {place: read_weights(place, _fault) for place in {place for place, _, _ in sources.values()}}
    for weight in geometry.weights():
        place, ours, theirs = sources[weight.group]
        name = theirs + weight.name.removeprefix(ours)
        # A tower that was saved alone has no place to be named after.
        tensor = read[place].get(name, read[place].get(name.removeprefix("vision_model.")))
        if tensor is None:
            raise _fault(f"{place} lacks {name}; it holds {listed(sorted(read[place]))}")
        if tuple(tensor.shape) != weight.shape:
            raise _fault(f"{name} in {place} has shape {list(tensor.shape)}, {list(weight.shape)} is expected")
        if not can_write(tensor.dtype):
            raise _fault(f"{name} in {place} is {tensor.dtype}, not fp32, fp16 or bf16")
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
