"""Checkpoints: the trained weights and the state that a resumed run needs, written atomically.

A checkpoint is written to ``.checkpoint-N.partial`` with a manifest of the size and SHA-256 digest of every file, then
renamed, so a crash leaves the previous checkpoint intact. Loading a checkpoint can't run code (safetensors,
``weights_only=True``).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from m2pt_cli.errors import DeviceError, InputError
from m2pt_cli.files.adapter_names import WEIGHTS_FILE

if TYPE_CHECKING:
    from torch import nn

MANIFEST = "manifest.json"
FULL_WEIGHTS = "weights.safetensors"
_NAME = re.compile(r"checkpoint-(\d+)")
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Raise `DeviceError` for every kind of failure to write to a full disk.

    Python sets an errno. safetensors and torch's zip writer raise other errors, which count as a full disk if less than
    1 MiB is free.
    """
    try:
        yield
    except Exception as error:
        known = isinstance(error, OSError) and error.errno in _FULL_DISK
        if not known and (isinstance(error, DeviceError) or shutil.disk_usage(_existing(folder)).free > 2**20):
            raise
        raise DeviceError(
            f"the disk is full: {folder} could not be written; what was complete before is kept",
            "free some space, then continue with --resume",
        ) from error


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to ``folder`` if the block succeeds and deleted if it fails."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with full_disk_named(folder):
        try:
            partial.mkdir(parents=True)
            yield partial
            _write_manifest(partial)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def write_text(file: Path, text: str) -> None:
    """Replace ``file`` atomically: a reader sees either the old text or the new one."""
    partial = file.with_name(f".{file.name}.partial")
    with full_disk_named(file):
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)


def save_weights(model: nn.Module, folder: Path) -> None:
    """Save the trained weights: an adapter in PEFT's format, or every tensor for full fine-tuning."""
    from peft import PeftModel
    from safetensors.torch import save_model

    if isinstance(model, PeftModel):
        # The default, "auto", would query the Hub at every save to see whether the base's vocabulary changed.
        model.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card; the run directory gets its own
    else:
        save_model(model, str(folder / FULL_WEIGHTS))


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load a checkpoint's weights into ``model``.

    Raises:
        InputError: an adapter tensor is missing, unexpected, or has another shape.
    """
    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file, load_model

    if not isinstance(model, PeftModel):
        load_model(model, str(folder / FULL_WEIGHTS), strict=True)
        return
    found = load_file(str(folder / WEIGHTS_FILE))
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    wrong = sorted(
        set(found.keys() ^ expected.keys())
        | {key for key in found.keys() & expected.keys() if found[key].shape != expected[key].shape}
    )
    if wrong:
        raise InputError(
            f"{folder} does not fit this run: {len(wrong)} tensors differ, the first is {wrong[0]}",
            "start anew with --overwrite",
        )
    set_peft_model_state_dict(model, found)


def checkpoints(run_dir: Path) -> list[tuple[int, Path]]:
    """Return ``(step, folder)`` of every checkpoint, oldest first."""
    found = [(match, path) for path in run_dir.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in found)


def latest_checkpoint(run_dir: Path, warn: Callable[[str], None]) -> Path | None:
    """Return the newest undamaged checkpoint, or None if there is none; ``warn`` gets a line for each damaged one.

    So is one whose run had its best step at a checkpoint that is no longer whole: the weights to keep would be lost.

    Raises:
        InputError: there are checkpoints, but all of them are damaged.
    """
    found = checkpoints(run_dir)
    for _, folder in reversed(found):
        fault = damage(folder) or _lost_best(folder)
        if fault is None:
            return folder
        warn(f"{folder} is damaged ({fault}) and is passed over")
    if found:
        raise InputError(f"every checkpoint in {run_dir} is damaged", "start anew with --overwrite")
    return None


def _lost_best(folder: Path) -> str | None:
    """What is wrong with the checkpoint of the best step so far, or None."""
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8")) if _has_state(folder) else {}
    best = state.get("best_global_step")
    if not best or folder.name == f"checkpoint-{best}":
        return None
    fault = damage(folder.with_name(f"checkpoint-{best}"))
    return None if fault is None else f"the best step's checkpoint-{best}: {fault}"


def _has_state(folder: Path) -> bool:
    return (folder / "trainer_state.json").is_file()


def damage(folder: Path) -> str | None:
    """Check a checkpoint against its manifest; return a description of the first fault, or None."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, written in files.items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != written["bytes"]:
                return f"{name} has {file.stat().st_size} bytes instead of {written['bytes']}"
            if digest(file) != written["sha256"]:
                return f"{name} was changed"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} can't be read"
    return None


def remove_old(run_dir: Path, *, keep: int, best_step: int | None) -> None:
    """Remove all but the newest ``keep`` checkpoints and the best one."""
    found = checkpoints(run_dir)
    for step, folder in found[: len(found) - keep]:
        if step != best_step:
            shutil.rmtree(folder, ignore_errors=True)


def _write_manifest(folder: Path) -> None:
    files = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        files[file.relative_to(folder).as_posix()] = {"bytes": file.stat().st_size, "sha256": digest(file)}
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")


def digest(file: Path) -> str:
    """sha256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
