"""The parts of a LLaVA v1: where Vicuna, CLIP and the projector lie, fetched from the Hub where they are no folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from m2pt_cli.bases.foreign_weights import LAYOUTS, weight_files
from m2pt_cli.bases.hub import fetch_chosen
from m2pt_cli.errors import AdapterError, InputError, M2PTError, UnavailableError

Report = Callable[[str], None]
Sizes = dict[str, int]

PROJECTOR = "mm_projector.bin"
PARTS_HINT = "LLaVA v1 is made of Vicuna, CLIP and LLaVA's stage-1 mm_projector.bin"
_CLIP_TEXTS = ("config.json", "preprocessor_config.json")
_LLM_TEXTS = ("config.json", "tokenizer.model")
# Of the same weights the copy that can't hold code is taken.
_WEIGHTS = (("model", ".safetensors"), ("pytorch_model", ".bin"))


@dataclass(frozen=True)
class OriginalParts:
    """What a LLaVA v1 is made of, each a folder or a Hub id; the projector may be the file itself."""

    language_model: str
    vision_tower: str
    projector: str


@dataclass(frozen=True)
class PartFolders:
    """The parts on this machine; ``projector`` is a file, or None where only texts were asked for."""

    language_model: Path
    vision_tower: Path
    projector: Path | None


def fetch_parts(parts: OriginalParts, *, report: Report | None = None) -> PartFolders:
    """All files of the parts; what the cache lacks is downloaded.

    Raises:
        InputError: a local part is missing or lacks a file.
        UnavailableError: a part on the Hub can't be had.
        DeviceError: the disk is too small.
    """
    texts = fetch_part_texts(parts, report=report)
    return PartFolders(
        _part(parts.language_model, _LLM_TEXTS, with_weights=True, report=report),
        _part(parts.vision_tower, _CLIP_TEXTS, with_weights=True, report=report),
        texts.projector or _projector(parts.projector, report),
    )


def fetch_part_texts(parts: OriginalParts, *, report: Report | None = None) -> PartFolders:
    """Configs, tokenizer and image processor alone. Raises as `fetch_parts`."""
    return PartFolders(
        _part(parts.language_model, _LLM_TEXTS, with_weights=False, report=report),
        _part(parts.vision_tower, _CLIP_TEXTS, with_weights=False, report=report),
        None,
    )


def fetch_checkpoint(repo_id: str, *, report: Report | None = None) -> Path:
    """The folder of an official checkpoint on the Hub: config and weights. Raises AdapterError."""

    def choose(sizes: Sizes) -> list[str]:
        weights = _weights_of(sizes)
        if not weights:
            raise AdapterError(f"{repo_id} holds no weights", "check the id on its page")
        return [*(name for name in ("config.json",) if name in sizes), *weights]

    return fetch_chosen(repo_id, choose, what="adapter", found_by=LAYOUTS, is_complete=_has_weights, report=report)


def _part(name: str, texts: tuple[str, ...], *, with_weights: bool, report: Report | None) -> Path:
    folder = Path(name).expanduser()
    if folder.exists() or _is_path(name):
        if not folder.is_dir():
            raise InputError(f"there is no folder {name}", "give a folder or a Hub id (owner/name)")
        lacking = [text for text in texts if not (folder / text).is_file()]
        if lacking:
            raise InputError(f"{folder} lacks {', '.join(lacking)}", "copy the whole folder again")
        weight_files(folder, lambda message: InputError(message, "copy the whole folder again"))
        return folder

    def is_complete(cached: Path) -> bool:
        return all((cached / text).is_file() for text in texts) and (not with_weights or _has_weights(cached))

    def choose(sizes: Sizes) -> list[str]:
        lacking = [text for text in texts if text not in sizes]
        weights = _weights_of(sizes)
        if lacking or not weights:
            raise UnavailableError(f"{name} lacks {', '.join(lacking) or 'weights'}", "check the id on its page")
        return [*texts, *(weights if with_weights else [])]

    return fetch_chosen(name, choose, what="base", found_by=("config.json",), is_complete=is_complete, report=report)


def _projector(name: str, report: Report | None) -> Path:
    place = Path(name).expanduser()
    if place.is_dir():
        place /= PROJECTOR
    if place.is_file():
        return place
    if _is_path(name) or place.name == PROJECTOR:
        raise InputError(f"there is no file {place}", f"give {PROJECTOR}, its folder or a Hub id (owner/name)")

    def choose(sizes: Sizes) -> list[str]:
        if PROJECTOR not in sizes:
            raise UnavailableError(f"{name} lacks {PROJECTOR}", "check the id on its page")
        return [PROJECTOR]

    folder = fetch_chosen(
        name,
        choose,
        what="base",
        found_by=(PROJECTOR,),
        is_complete=lambda cached: (cached / PROJECTOR).is_file(),
        report=report,
    )
    return folder / PROJECTOR


def _is_path(name: str) -> bool:
    """Whether a name can only mean a path: a Hub id has exactly one slash and does not begin like a path."""
    return name.count("/") != 1 or name.startswith((".", "/", "~")) or Path(name).parent.is_dir()


def _weights_of(sizes: Sizes) -> list[str]:
    for stem, suffix in _WEIGHTS:
        ends = (suffix, f"{suffix}.index.json")
        names = [name for name in sizes if "/" not in name and name.startswith(stem) and name.endswith(ends)]
        if any(name.endswith(suffix) for name in names):
            return sorted(names)
    return []


def _has_weights(folder: Path) -> bool:
    try:
        return bool(weight_files(folder, UnavailableError))
    except M2PTError:
        return False
