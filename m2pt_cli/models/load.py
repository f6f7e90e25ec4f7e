"""Load a base, its processor and its fingerprint onto a device."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from m2pt_cli.errors import DeviceError, SettingsError, UnavailableError
from m2pt_cli.families.family import LLAVA, MODEL_CLASSES, family_of
from m2pt_cli.families.geometry import Geometry
from m2pt_cli.families.linear_projector import linear_projector
from m2pt_cli.families.processor import load_processor, quiet_transformers, set_visual_tokens
from m2pt_cli.files.hub import gigabytes
from m2pt_cli.models.base_files import base_tensors, require_base_files
from m2pt_cli.models.catalog import BaseEntry, entry_of
from m2pt_cli.models.fingerprint import base_fingerprint
from m2pt_cli.models.hub import fetch_base, fetch_texts
from m2pt_cli.runtime.device import choose_device, choose_dtype, said_device, set_seed, set_threads
from m2pt_cli.version import library_versions

if TYPE_CHECKING:
    from m2pt_cli.models.adapters import AdapterInfo

__all__ = [
    "LoadedBase",
    "base_fingerprint",
    "base_folder",
    "choose_device",
    "choose_dtype",
    "load_base",
    "load_base_processor",
    "require_fast_enough",
    "set_seed",
    "set_threads",
    "set_visual_tokens",
]

Report = Callable[[str], None]
QUANTIZATIONS = ("4bit", "8bit")
# Parameters from which on a CPU takes minutes for an answer.
NEEDS_GPU = 1_000_000_000
_NAMED = ("torch", "transformers", "peft")


@dataclass(frozen=True)
class LoadedBase:
    """A frozen LLaVA ready for use.

    Attributes:
        model: in evaluation mode, no parameter requires a gradient; a PeftModel once an adapter is attached.
        processor: tokenizer and image processor; writes ``<image>`` as often as the features have rows.
        name: what an adapter records as its base: an alias, a Hub id or a folder.
        fingerprint: `base_fingerprint` of its files.
        adapter: the adapter in ``model``, if any.
    """

    model: Any
    processor: Any
    name: str
    entry: BaseEntry
    fingerprint: str | None
    device: torch.device
    dtype: torch.dtype
    adapter: AdapterInfo | None = None

    def description(self) -> str:
        """Return base, device, dtype, threads and versions in a line, for ``--verbose``."""
        on = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device)
        threads = torch.get_num_threads()
        versions = ", ".join(f"{name} {number}" for name, number in library_versions(*_NAMED).items())
        return (
            f"{self.name} on {on} in {str(self.dtype).removeprefix('torch.')}, "
            f"{threads} {'thread' if threads == 1 else 'threads'} ({versions})"
        )


def load_base(
    base: str,
    *,
    device: str | None = None,
    dtype: str = "auto",
    quantization: str | None = None,
    report: Report | None = None,
) -> LoadedBase:
    """Load a base directly onto a device, after all cheaper checks.

    Args:
        base: alias, Hub id or folder.
        device: ``cpu``, ``cuda``, ``cuda:N``, ``mps``; None for ``$M2PT_DEVICE``, then the best available.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        quantization: None, ``4bit`` or ``8bit`` (bitsandbytes, of the language model alone).
        report: called with a line that says what will be downloaded, where to, and the free disk.

    Raises:
        UnavailableError: the base is not available, is damaged, or its class was never tested.
        DeviceError: there is no such device, or the base is large and there is no GPU.
        SettingsError: a device or a quantisation that does not exist.
    """
    entry = entry_of(base)
    place = choose_device(device)
    kind = choose_dtype(dtype, place)
    geometry = entry.geometry
    require_fast_enough(entry, device)
    options = _quantization_options(quantization, geometry.model_type, kind, place)
    folder = base_folder(entry, report=report)
    require_base_files(folder)
    base_tensors(folder, geometry)
    processor = load_processor(folder, geometry)
    model = _load_model(folder, geometry, kind, place, options)
    # Computed now, because the files that loading has read are still in the page cache.
    fingerprint = base_fingerprint(folder)
    name = entry.repo_id or entry.name
    # PEFT writes this name into an adapter's config.
    model.name_or_path = model.config._name_or_path = name
    return LoadedBase(model, processor, name, entry, fingerprint, place, kind)


def require_fast_enough(entry: BaseEntry, device: str | None, *, for_training: bool = False) -> None:
    """Raise for a large base if there is no GPU and the user did not request the CPU.

    Args:
        for_training: estimate the time per training sample, not per question.

    Raises:
        DeviceError: the base would be too slow; the message estimates the time.
    """
    if said_device(device) is not None or entry.geometry.total_parameters < NEEDS_GPU:
        return
    if choose_device(device).type == "cpu":
        raise _too_slow(entry.name, entry.geometry, for_training=for_training)


def load_base_processor(entry: BaseEntry, *, report: Report | None = None) -> Any:
    """Load the processor of a base; no weights are downloaded or read.

    Raises:
        UnavailableError: the base is not available, or its processor can't be used.
    """
    if entry.folder is None:
        from m2pt_cli.convert.llava_v1 import assembled_texts

        fetched = fetch_texts(entry.repo_id, report=report) if entry.repo_id else assembled_texts(entry, report=report)
        return load_processor(fetched, entry.geometry)
    return load_processor(base_folder(entry, report=report), entry.geometry)


def base_folder(entry: BaseEntry, *, report: Report | None = None) -> Path:
    """Return the local folder of a base; download it, and assemble a base of several parts, if necessary.

    Raises:
        UnavailableError: the base is not available.
        DeviceError: the disk has too little space.
    """
    if entry.folder is not None:
        return entry.folder
    if entry.repo_id is not None:
        return fetch_base(entry.repo_id, report=report)
    from m2pt_cli.convert.llava_v1 import assembled_base

    return assembled_base(entry, report=report)


def _load_model(
    folder: Path, geometry: Geometry, dtype: torch.dtype, device: torch.device, options: dict[str, Any]
) -> Any:
    if "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        raise UnavailableError(
            f"the weights in {folder} are stored quantised", "use the unquantised base, and quantise it at loading"
        )
    model_class: Any = getattr(transformers, MODEL_CLASSES[geometry.model_type])
    projector = (
        linear_projector() if geometry.projector == "linear" and geometry.model_type in LLAVA.classes else nullcontext()
    )
    with quiet_transformers(), projector:
        model, info = model_class.from_pretrained(
            folder,
            dtype=dtype,
            # On a CPU a device map would only add hooks.
            device_map=None if device.type == "cpu" else {"": device},
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    faults = [str(fault) for kind in ("missing_keys", "mismatched_keys") for fault in info[kind]]
    if faults:
        raise UnavailableError(
            f"{len(faults)} weights of {folder} do not fit {model_class.__name__}, the first {faults[0]}",
            "the weights are not those of the config.json beside them",
        )
    model.requires_grad_(False)
    return model.eval()


def _quantization_options(
    quantization: str | None, model_type: str, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    if quantization is None:
        return {}
    if quantization not in QUANTIZATIONS:
        raise SettingsError(f"the quantisation {quantization!r} is not one of {', '.join(QUANTIZATIONS)}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UnavailableError(
            f"{quantization} quantisation needs bitsandbytes, which is not installed",
            "python -m pip install 'm2pt_cli[quant]'",
        )
    if device.type != "cuda":
        raise DeviceError(f"{quantization} quantisation needs a CUDA device, not {device.type}", "leave it out")
    from transformers import BitsAndBytesConfig

    # Not quantised: the tower and the projector are small, and the method's weights have their widths.
    family = family_of(model_type)
    kept = [family.vision.path.rpartition(".")[2], family.projector_name, "lm_head"]
    if quantization == "8bit":
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=kept
        )
    return {"quantization_config": config}


def _too_slow(name: str, geometry: Geometry, *, for_training: bool) -> DeviceError:
    """Return the error with the estimated time of a large base on this CPU, from the time of one matrix product."""
    side = 768
    matrix = torch.ones(side, side)
    matrix @ matrix
    started = time.perf_counter()
    matrix @ matrix
    speed = 2 * side**3 / max(time.perf_counter() - started, 1e-6)
    total = geometry.total_parameters
    # Two operations per parameter and token; an image and a short question are about this many tokens.
    tokens = geometry.vision.num_patches + 64
    minutes = 2 * total * tokens / speed / 60
    # A training step runs the base forward twice, because of gradient checkpointing, and backward once; frozen weights
    # get no gradient of their own.
    what = f"{3 * minutes:.1f} minutes a training sample" if for_training else f"{minutes:.1f} minutes a question"
    memory = f"about {gigabytes(4 * total)} of memory{_own_memory()} and {what}"
    return DeviceError(
        f"{name} has {total / 1e9:.1f} billion parameters and there is no GPU: it would take {memory}",
        "try it on --base nano, or say --device cpu to do it all the same",
    )


def _own_memory() -> str:
    try:
        return f" (this machine has {gigabytes(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))})"
    except (AttributeError, OSError, ValueError):
        return ""
