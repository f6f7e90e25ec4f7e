"""Read and check adapters without torch; attach them to a base, with strict checks, and detach them."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2pt_cli.errors import AdapterError
from m2pt_cli.files.adapter_names import CONFIG_FILE, PICKLE_SUFFIXES, WEIGHTS_FILE
from m2pt_cli.files.hub import HUB_ID
from m2pt_cli.files.safetensors import StoredTensor, stored_tensors
from m2pt_cli.models.catalog import find_base
from m2pt_cli.settings import IMAGE_FITS, INTERACTIONS, TEMPLATES, VISUAL_TOKENS

if TYPE_CHECKING:
    from m2pt_cli.models.load import LoadedBase

PEFT_TYPES = ("M2PT", "LORA")
_RUN_FILE = "run.yaml"  # written by training, beside the adapter
_CHECKPOINT = re.compile(r"checkpoint-\d+")


@dataclass(frozen=True)
class AdapterInfo:
    """Facts about an adapter from its files.

    Attributes:
        folder: the folder of its files.
        name: the last part of the folder or Hub id; names it in results.
        base: the base it was trained on: an alias, a Hub id or a folder; None if not recorded.
        peft_type: ``M2PT`` or ``LORA``.
        method: the equivalent ``--method``: m2pt, visual, textual, interaction or lora.
        interaction: as configured (``auto`` if not recorded); ``none`` for LoRA.
        chat_template, image_fit, base_fingerprint: of its training; None if not recorded.
        visual_tokens: ``patches`` or ``official``.
        fingerprint: sha256 of its weights.
        bytes: size of its weights file.
    """

    folder: Path
    name: str
    base: str | None
    peft_type: str
    method: str
    interaction: str
    train_lm_head: bool
    chat_template: str | None
    image_fit: str | None
    visual_tokens: str
    num_visual_prompts: int
    num_textual_prompts: int
    base_fingerprint: str | None
    fingerprint: str
    bytes: int

    def tensors(self) -> list[StoredTensor]:
        """Return its weights by name and shape, from the file's header. Raises AdapterError."""
        return _weights(self.folder)


def read_adapter(adapter: str) -> AdapterInfo:
    """Read an adapter's config and the header of its weights; every fault is an AdapterError (exit code 4).

    Args:
        adapter: a folder, or a Hub id (``owner/name``); an existing folder wins.

    Raises:
        AdapterError: it is missing, empty, damaged, a pickle, of another method, or can't be fetched.
    """
    folder = _folder_of(adapter)
    _require_files(folder)
    config = _config(folder)
    peft_type = config.get("peft_type")
    if peft_type not in PEFT_TYPES:
        raise AdapterError(
            f"{folder} holds a {peft_type} adapter; m2pt reads {' and '.join(PEFT_TYPES)}", "name another --adapter"
        )
    _weights(folder)
    is_lora = peft_type == "LORA"
    visual, textual = (0, 0) if is_lora else (_count(config, folder, side) for side in ("visual", "textual"))
    return AdapterInfo(
        folder=folder,
        name=_name(adapter),
        base=_base(config.get("base_model_name_or_path"), folder),
        peft_type=peft_type,
        method="lora" if is_lora else _method(visual, textual),
        interaction="none" if is_lora else _choice(config, folder, "interaction", INTERACTIONS) or "auto",
        train_lm_head=bool(config.get("train_lm_head", False)),
        chat_template=_choice(config, folder, "chat_template", TEMPLATES),
        image_fit=_choice(config, folder, "image_fit", IMAGE_FITS),
        visual_tokens=_choice(config, folder, "visual_tokens", VISUAL_TOKENS) or "patches",
        num_visual_prompts=visual,
        num_textual_prompts=textual,
        base_fingerprint=_text(config, folder, "base_fingerprint"),
        fingerprint=_sha256(folder / WEIGHTS_FILE),
        bytes=(folder / WEIGHTS_FILE).stat().st_size,
    )


def attach_adapter(
    loaded: LoadedBase, info: AdapterInfo, *, name: str = "default", report: Callable[[str], None] | None = None
) -> Any:
    """Attach an adapter to a loaded base, with strict checks of keys, shapes, geometry and base fingerprint.

    The processor is set to write as many image tokens as the adapter's ``visual_tokens`` asks for; `detach_adapter`
    undoes both.

    Args:
        report: called with a line about settings of the adapter that are ignored.

    Returns:
        The PeftModel, in evaluation mode, without gradients.

    Raises:
        AdapterError: the adapter does not fit this base; the message names both sides.
    """
    if loaded.adapter is not None:
        raise AdapterError(f"the model holds the adapter {loaded.adapter.name} already", "detach_adapter takes it out")
    require_same_base(info, loaded.name, loaded.fingerprint)
    from m2pt_cli.families.processor import set_visual_tokens
    from m2pt_cli.models.attachment import load_peft_model

    model = load_peft_model(loaded.model, info, name=name, report=report)
    set_visual_tokens(loaded.processor, loaded.model, info.visual_tokens, info.num_visual_prompts)
    return model


def detach_adapter(loaded: LoadedBase, model: Any) -> None:
    """Remove the adapter from ``model`` (returned by `attach_adapter`) and restore the base and its processor."""
    from m2pt_cli.families.processor import set_visual_tokens
    from m2pt_cli.models.attachment import unload

    unload(model)
    set_visual_tokens(loaded.processor, loaded.model)


def require_same_base(info: AdapterInfo, base: str, fingerprint: str | None) -> None:
    """Check that an adapter was trained on the same weights, if both fingerprints are known.

    Raises:
        AdapterError: it was trained on other weights; the message calls these ``base``.
    """
    theirs, ours = info.base_fingerprint, fingerprint
    if theirs is not None and ours is not None and theirs != ours:
        raise AdapterError(
            f"the adapter {info.name} was trained on {info.base or 'another base'} (fingerprint {theirs[:12]}), "
            f"this base is {base} ({ours[:12]})",
            f"m2pt ... --base {info.base}" if info.base and info.base != base else "train it on this base",
        )


def _folder_of(adapter: str) -> Path:
    folder = Path(adapter).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise AdapterError(f"the adapter {adapter} is a file", f"give the folder that holds its {CONFIG_FILE}")
    parent = folder.parent
    names = [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
    near = difflib.get_close_matches(folder.name, names, n=1)
    # runs/demo could also be a Hub id; if a folder `runs` exists, it is a path.
    if parent.is_dir() or not HUB_ID.fullmatch(adapter):
        hint = f"did you mean {parent / near[0]}?" if near else "train one: m2pt train --base nano --data demo"
        raise AdapterError(f"there is no adapter folder {adapter}", hint)
    from m2pt_cli.models.hub import fetch_adapter

    try:
        return fetch_adapter(adapter)
    except AdapterError as error:
        raise AdapterError(f"there is no folder {adapter}, and {error.message}", error.hint) from None


def _require_files(folder: Path) -> None:
    names = sorted(entry.name for entry in folder.iterdir())
    if CONFIG_FILE in names and WEIGHTS_FILE in names:
        return
    checkpoints = [name for name in names if _CHECKPOINT.fullmatch(name) and (folder / name / CONFIG_FILE).is_file()]
    if checkpoints:
        latest = max(checkpoints, key=lambda name: int(name.rpartition("-")[2]))
        raise AdapterError(
            f"{folder} holds no finished adapter, but checkpoints",
            f"m2pt train --resume --output-dir {folder}, or --adapter {folder / latest}",
        )
    # PEFT saves every adapter that is not called "default" in a subfolder with its name.
    below = [name for name in names if (folder / name / CONFIG_FILE).is_file()]
    if below and CONFIG_FILE not in names:
        raise AdapterError(
            f"{folder} holds no adapter itself, but {len(below)} below it: {', '.join(below[:5])}",
            f"--adapter {folder / below[0]}",
        )
    if not names:
        raise AdapterError(f"the adapter folder {folder} is empty", "name the folder that m2pt train wrote")
    if _RUN_FILE in names:
        raise AdapterError(
            f"{folder} is a training run without its adapter: {CONFIG_FILE} or {WEIGHTS_FILE} is missing",
            f"m2pt train --resume --output-dir {folder}, which begins at the first step: there is no checkpoint",
        )
    if CONFIG_FILE not in names:
        hint = f"it is a whole model: give it with --base {folder}" if "config.json" in names else None
        raise AdapterError(
            f"{folder} is no adapter: it holds no {CONFIG_FILE}", hint or "name the folder m2pt train wrote"
        )
    pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    if pickles:
        raise AdapterError(
            f"{folder} holds its weights as {pickles[0]}, a pickle, which can run code and is not read",
            "save it again with PEFT's save_pretrained, which writes " + WEIGHTS_FILE,
        )
    others = [name for name in names if name.endswith(".safetensors")]
    held = f", but {', '.join(others[:3])}" if others else ""
    raise AdapterError(
        f"{folder} holds no {WEIGHTS_FILE}{held}",
        "copy the whole folder again, or save the adapter again with PEFT's save_pretrained",
    )


def _damaged_hint(folder: Path) -> str:
    """Return the next step for an adapter file that can't be read."""
    if (folder / _RUN_FILE).is_file():
        return f"m2pt train --resume --output-dir {folder}, which writes it again; or copy the whole folder again"
    return "copy the whole folder again"


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{folder / CONFIG_FILE} can't be read: {error}", _damaged_hint(folder)) from None
    if not isinstance(config, dict):
        raise AdapterError(f"{folder / CONFIG_FILE} is damaged: a JSON mapping was expected", _damaged_hint(folder))
    return config


def _weights(folder: Path) -> list[StoredTensor]:
    try:
        tensors = stored_tensors(folder / WEIGHTS_FILE)
    except (OSError, ValueError) as error:
        raise AdapterError(f"{folder / WEIGHTS_FILE} can't be read: {error}", _damaged_hint(folder)) from None
    if not tensors:
        raise AdapterError(f"{folder / WEIGHTS_FILE} holds no weights", _damaged_hint(folder))
    return tensors


def _count(config: dict[str, Any], folder: Path, side: str) -> int:
    value = config.get(f"num_{side}_prompts")
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise AdapterError(
            f"{folder / CONFIG_FILE} is damaged: num_{side}_prompts is {value!r}", "copy the whole folder again"
        )
    return value


def _choice(config: dict[str, Any], folder: Path, key: str, choices: tuple[str, ...]) -> str | None:
    value = config.get(key)
    if value is not None and value not in choices:
        raise AdapterError(
            f"{folder / CONFIG_FILE} is damaged: {key} is {value!r}, not one of {', '.join(choices)}",
            "it may come from a newer m2pt: python -m pip install -U m2pt_cli",
        )
    return value


def _text(config: dict[str, Any], folder: Path, key: str) -> str | None:
    value = config.get(key)
    if value is not None and not isinstance(value, str):
        raise AdapterError(f"{folder / CONFIG_FILE} is damaged: {key} is {value!r}", "copy the whole folder again")
    return value


def _base(value: Any, folder: Path) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise AdapterError(f"{folder / CONFIG_FILE} is damaged: base_model_name_or_path is {value!r}", "name --base")
    known = find_base(value)
    return known.name if known else value


def _method(visual: int, textual: int) -> str:
    if visual and textual:
        return "m2pt"
    return "visual" if visual else "textual" if textual else "interaction"


def _name(adapter: str) -> str:
    return Path(adapter).expanduser().resolve().name or "adapter"


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise AdapterError(f"{file} can't be read: {error}") from None
