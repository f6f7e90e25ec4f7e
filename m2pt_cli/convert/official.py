"""Find and read checkpoints of the M²PT authors' code, and check that they have the expected content."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from m2pt_cli.convert.weights import listed, read_weights, shown, weight_files
from m2pt_cli.errors import AdapterError
from m2pt_cli.families.geometry import Geometry
from m2pt_cli.files.adapter_names import CONFIG_FILE
from m2pt_cli.files.safetensors import can_write

if TYPE_CHECKING:
    import torch

OFFICIAL_BASE = "llava-v1-7b"

_TEXTUAL = re.compile(r"model\.prompts\.(\d{1,6})")
_VISUAL = re.compile(r"model\.vision_tower\.vision_tower\.vision_model\.encoder\.prompts\.(\d{1,6})")
_PROJECTOR = "model.mm_projector."
_HEAD = "lm_head.weight"
_TOWER, _DECODER = "model.vision_tower.vision_tower.vision_model.", "model."
# Buffers that older versions of transformers saved; they are computed from the config.
_BUFFERS = ("rotary_emb.inv_freq", "embeddings.position_ids")
# How images reach the language model in the authors' training script.
_EXPECTED_CONFIG = {"mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "mm_use_im_start_end": False}
_COPY = "copy the whole folder again, or save it again with the authors' code"


@dataclass
class OfficialCheckpoint:
    """The trained tensors of an official checkpoint, and the frozen weights that it contains.

    Attributes:
        place: the folder or file of the checkpoint.
        visual: visual prompts ``[k_v, d_v]`` for each vision layer; may be empty.
        textual: textual prompts ``[k_t, d_t]`` for each layer of the language model; may be empty.
        projector: ``weight`` ``[d_t, d_v]`` and ``bias`` ``[d_t]``.
        lm_head: ``[vocabulary, d_t]``, or None.
        frozen: weights of the base, by transformers' current names.
    """

    place: Path
    visual: list[torch.Tensor] = field(default_factory=list)
    textual: list[torch.Tensor] = field(default_factory=list)
    projector: dict[str, torch.Tensor] = field(default_factory=dict)
    lm_head: torch.Tensor | None = None
    frozen: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def num_visual_prompts(self) -> int:
        return self.visual[0].shape[0] if self.visual else 0

    @property
    def num_textual_prompts(self) -> int:
        return self.textual[0].shape[0] if self.textual else 0


def find_official(official: str, *, report: Callable[[str], None] | None = None) -> Path:
    """The folder or file of an official checkpoint; a Hub id is downloaded. No torch.

    Raises:
        AdapterError: the checkpoint does not exist, or lacks files.
    """
    place = Path(official).expanduser()
    try:
        exists, is_folder = place.exists(), place.is_dir()
        if is_folder:
            _require_weights(place)
    except OSError as error:  # a folder without read permission, or a name that is too long
        raise AdapterError(f"{shown(official)} can't be read: {error.strerror}", _COPY) from None
    if exists:
        if is_folder:
            return place
        if place.suffix not in (".bin", ".safetensors"):
            raise AdapterError(f"{place} is neither .bin nor .safetensors", "give the checkpoint's folder")
        return place
    if official.count("/") != 1 or official.startswith((".", "/", "~")) or place.parent.is_dir():
        raise AdapterError(f"there is no checkpoint {official}", _nearest(place))
    from m2pt_cli.convert.llava_v1_parts import fetch_checkpoint

    return fetch_checkpoint(official, report=report)


def read_official(place: Path, geometry: Geometry, base: str) -> OfficialCheckpoint:
    """Read an official checkpoint, and check that it has all trained tensors, fits the base, and has no unknown tensor.

    Args:
        place: a folder or a file, as `find_official` returns it.
        geometry: the geometry of the base.
        base: the name of the base, for messages.

    Raises:
        AdapterError: the checkpoint is damaged, contains code, lacks tensors, has unknown ones, or does not fit the
            base.
    """
    if geometry.projector != "linear" or geometry.model_type != "llava" or not geometry.vision.has_cls:
        raise AdapterError(
            f"official checkpoints are of a LLaVA v1 with a linear projector, which {base} is not",
            f"leave out --base, or use --base {OFFICIAL_BASE}",
        )
    _require_expected_config(place, geometry)
    tensors = read_weights(place, _fault)
    checkpoint = OfficialCheckpoint(place)
    visual: dict[int, torch.Tensor] = {}
    textual: dict[int, torch.Tensor] = {}
    projector_shapes = _projector_shapes(geometry)
    frozen_shapes = {w.name: w.shape for w in geometry.weights() if w.group in ("vision_tower", "language_model")}
    unknown, misshapen = [], []
    for name, tensor in tensors.items():
        expected: tuple[int, ...] | None = None
        if match := _VISUAL.fullmatch(name):
            visual[int(match[1])] = tensor
        elif match := _TEXTUAL.fullmatch(name):
            textual[int(match[1])] = tensor
        elif name in projector_shapes:
            checkpoint.projector[name.removeprefix(_PROJECTOR)] = tensor
            expected = projector_shapes[name]
        elif name == _HEAD:
            checkpoint.lm_head = tensor
            expected = (geometry.text.vocab_size, geometry.text.hidden_size)
        elif (current := _current_name(name)) in frozen_shapes:
            checkpoint.frozen[current] = tensor
            expected = frozen_shapes[current]
        elif not name.endswith(_BUFFERS):
            unknown.append(name)
        if expected is not None and tuple(tensor.shape) != expected:
            misshapen.append(f"{shown(name)} is {list(tensor.shape)} instead of {list(expected)}")
    faults = []
    if not (visual or textual):
        faults.append("it holds no prompts (model.prompts.N, vision_model.encoder.prompts.N)")
    missing = sorted(projector_shapes.keys() - tensors.keys())
    for found, layers, width, stem in (
        (visual, geometry.vision.num_layers, geometry.vision.hidden_size, f"{_TOWER}encoder.prompts."),
        (textual, geometry.text.num_layers, geometry.text.hidden_size, "model.prompts."),
    ):
        if found:
            missing += [f"{stem}{i}" for i in range(layers) if i not in found]
            unknown += [f"{stem}{i}" for i in sorted(found) if i >= layers]
            misshapen += _misshapen_prompts(found, width, stem)
    faults += [
        f"{len(names)} {'tensor is' if len(names) == 1 else 'tensors are'} {kind} ({listed(names)})"
        for kind, names in (("missing", missing), ("unknown", unknown), ("of another shape", misshapen))
        if names
    ]
    if faults:
        raise AdapterError(
            f"{place} is no official M²PT checkpoint for {base}: {'; '.join(faults)}", _hint(misshapen, tensors)
        )
    checkpoint.visual = [visual[i][0] for i in sorted(visual)]
    checkpoint.textual = [textual[i][0] for i in sorted(textual)]
    _require_finite(checkpoint)
    return checkpoint


def _require_expected_config(place: Path, geometry: Geometry) -> None:
    """Raise AdapterError if images reach the language model in another way, according to ``config.json``."""
    file = place / "config.json"
    if not file.is_file():
        return
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        found = {name: config.get(name) for name in _EXPECTED_CONFIG}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise AdapterError(f"{file} can't be read: {type(error).__name__}", _COPY) from None
    expected = _EXPECTED_CONFIG | {"mm_vision_select_layer": geometry.feature_layers[0]}
    others = [f"{name} {found[name]!r}" for name in expected if found[name] not in (None, expected[name])]
    if others:
        raise AdapterError(
            f"{place} was trained with {shown(', '.join(others))}, which m2pt does not do",
            "m2pt takes what the authors' script makes: "
            + ", ".join(f"{name} {expected[name]!r}" for name in expected),
        )


def _require_finite(checkpoint: OfficialCheckpoint) -> None:
    import torch

    trained = {"a prompt": [*checkpoint.visual, *checkpoint.textual], "mm_projector": checkpoint.projector.values()}
    if checkpoint.lm_head is not None:
        trained["lm_head"] = [checkpoint.lm_head]
    for what, tensors in trained.items():
        for tensor in tensors:
            if not can_write(tensor.dtype):
                raise AdapterError(f"{what} in {checkpoint.place} is {tensor.dtype}, not fp32, fp16 or bf16", _COPY)
            if not all(bool(torch.isfinite(rows).all()) for rows in tensor.split(4096)):
                raise AdapterError(f"{what} in {checkpoint.place} holds NaN or infinite values", _COPY)


def _misshapen_prompts(found: dict[int, torch.Tensor], width: int, stem: str) -> list[str]:
    """Messages about prompts whose shape is not ``[1, k, width]``, with the k of the first layer."""
    first = found[min(found)]
    count = first.shape[1] if first.ndim == 3 else 0
    expected = [1, count or "k", width]
    return [
        f"{stem}{i} is {list(tensor.shape)} instead of {expected}".replace("'", "")
        for i, tensor in sorted(found.items())
        if not count or list(tensor.shape) != expected
    ]


def _projector_shapes(geometry: Geometry) -> dict[str, tuple[int, ...]]:
    own = "model.multi_modal_projector."
    return {w.name.replace(own, _PROJECTOR): w.shape for w in geometry.weights() if w.group == "projector"}


def _current_name(name: str) -> str:
    """Map the authors' name of a frozen weight to transformers' current name; undefined for other names."""
    if name.startswith(_TOWER):
        return "model.vision_tower." + name.removeprefix(_TOWER)
    return "model.language_model." + name.removeprefix(_DECODER)


def _hint(misshapen: list[str], tensors: dict[str, torch.Tensor]) -> str:
    if any(tensor.numel() == 0 for tensor in tensors.values()):
        # DeepSpeed's ZeRO 3, which the authors' script uses, leaves empty tensors where weights were not gathered.
        return "its weights were saved without being gathered: run zero_to_fp32.py of that folder, import its output"
    if not any(".prompts." in name for name in tensors):
        return "a whole model is given with --base, an adapter with --adapter"
    return "name the base it was trained on with --base" if misshapen else _COPY


def _fault(message: str) -> AdapterError:
    return AdapterError(message, _COPY)


def _nearest(place: Path) -> str:
    names = [entry.name for entry in place.parent.iterdir()] if place.parent.is_dir() else []
    near = difflib.get_close_matches(place.name, names, n=1)
    return f"did you mean {place.parent / near[0]}?" if near else "give its folder, one file of weights, or a Hub id"


def _require_weights(folder: Path) -> None:
    try:
        weight_files(folder, _fault)
    except AdapterError as error:
        names = [entry.name for entry in folder.iterdir() if entry.is_dir()]
        inner = [name for name in names if name.startswith(("checkpoint-", "best_checkpoint"))]
        if CONFIG_FILE in {entry.name for entry in folder.iterdir()}:
            raise AdapterError(f"{folder} is an adapter already", f"use it with --adapter {folder}") from None
        if (folder / "zero_to_fp32.py").is_file():
            hint = "DeepSpeed kept its weights apart: run zero_to_fp32.py of that folder, import its output"
            raise AdapterError(error.message, hint) from None
        if inner:
            raise AdapterError(error.message, f"give one of its checkpoints, such as {folder / max(inner)}") from None
        raise
