"""Resolves names of bases: known aliases with geometry and training defaults, folders, and Hub ids. No torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from m2pt_cli.errors import UnavailableError
from m2pt_cli.families.geometry import Geometry, TextGeometry, VisionGeometry
from m2pt_cli.families.llava_config import DAMAGED_HINT, geometry_from_config
from m2pt_cli.families.measured import FamilyGeometry
from m2pt_cli.files.adapter_names import CONFIG_FILE
from m2pt_cli.files.hub import HUB_ID
from m2pt_cli.settings import closest

__all__ = [
    "BaseDefaults",
    "BaseEntry",
    "Geometry",
    "TextGeometry",
    "VisionGeometry",
    "base_names",
    "entry_of",
    "find_base",
    "geometry_from_config",
    "resolve_base_name",
]

DEFAULT_BASE = "llava-1.5-7b"
NANO_FOLDER = Path(__file__).parent / "nano"


@dataclass(frozen=True, kw_only=True)
class BaseDefaults:
    """Training defaults of a base for values that the user does not set; named as in `TrainSettings`.

    Attributes:
        baseline_visual_prompts, baseline_textual_prompts: lengths of the prompt-only methods ``visual`` and
            ``textual`` (the paper's baselines are longer or shorter than its own prompts).
        method_learning_rates: learning rates of the methods without prompt tuning, ``lora`` and ``full``.
    """

    visual_prompts: int
    textual_prompts: int
    learning_rate: float
    visual_lr: float | None = None
    textual_lr: float | None = None
    interaction_lr: float | None = None
    epochs: float | None = None
    max_steps: int | None = None
    batch_size: int
    accumulation: int
    warmup: float
    weight_decay: float = 0.0
    max_length: int
    template: str
    image_fit: str
    gradient_checkpointing: bool
    workers: int = 0
    save_steps: int | None = None
    baseline_visual_prompts: int
    baseline_textual_prompts: int
    method_learning_rates: Mapping[str, float] = field(default_factory=dict)

    def for_method(self, method: str) -> dict[str, Any]:
        """Return the defaults of one method, as the mapping that `TrainSettings.resolve` takes."""
        own = ("baseline_visual_prompts", "baseline_textual_prompts", "method_learning_rates")
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in own}
        if method in self.method_learning_rates:
            values["learning_rate"] = self.method_learning_rates[method]
            values.update(visual_lr=None, textual_lr=None, interaction_lr=None)
        prompts = {
            "m2pt": (self.visual_prompts, self.textual_prompts),
            "visual": (self.baseline_visual_prompts, 0),
            "textual": (0, self.baseline_textual_prompts),
        }
        values["visual_prompts"], values["textual_prompts"] = prompts.get(method, (0, 0))
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class BaseEntry:
    """A base that the user can select by name.

    Attributes:
        name: what the user names and what an adapter records: an alias, a Hub id or a folder.
        repo_id: its repository on the Hub; None if there is no single repository.
        folder: the folder of its files, if they are on this machine.
        known_geometry: its geometry, if it need not be read from ``folder``.
        download_bytes: size of its weights on the Hub; None if nothing is downloaded.
        parts: the repositories it is assembled from, if none holds all of it: language model, vision tower, projector
            (see `convert.llava_v1`).
    """

    name: str
    repo_id: str | None
    folder: Path | None
    known_geometry: Geometry | None
    defaults: BaseDefaults
    download_bytes: int | None = None
    parts: tuple[str, ...] = ()

    @property
    def hub_ids(self) -> tuple[str, ...]:
        """Where the Hub has this base, or the parts it is assembled from; empty for one that is on no Hub."""
        return self.parts if self.repo_id is None else (self.repo_id,)

    @cached_property
    def geometry(self) -> Geometry:
        """Widths, depths and weights, read once. Raises UnavailableError if the folder has no usable config."""
        if self.known_geometry is not None:
            return self.known_geometry
        assert self.folder is not None
        return read_geometry(self.folder)


def _clip_large(image_size: int) -> VisionGeometry:
    return VisionGeometry("clip_vision_model", 1024, 4096, 24, 16, 3, image_size, 14, has_head=False)


def _llama(vocab_size: int, *, wide: bool = False) -> TextGeometry:
    width, inner, layers, heads = (5120, 13824, 40, 40) if wide else (4096, 11008, 32, 32)
    return TextGeometry(
        "llama",
        vocab_size,
        width,
        inner,
        layers,
        heads,
        heads,
        128,
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
    )


def _llava(vision: VisionGeometry, text: TextGeometry, projector: str) -> Geometry:
    return Geometry(
        "llava",
        vision,
        text,
        projector,
        projector_bias=True,
        feature_layers=(-2,),
        feature_strategy="default",
        tied_lm_head=False,
    )


LLAVA_V1_7B = _llava(_clip_large(224), _llama(32000), "linear")
LLAVA_15_7B = _llava(_clip_large(336), _llama(32064), "mlp")
LLAVA_15_13B = _llava(_clip_large(336), _llama(32064, wide=True), "mlp")

# From the authors' training script; VPT and PTUM lengths from section 3 of the paper. The learning rates of lora and
# full are those of the LLaVA-1.5 release.
PAPER_DEFAULTS = BaseDefaults(
    visual_prompts=20,
    textual_prompts=10,
    learning_rate=7e-4,
    epochs=3,
    batch_size=16,
    accumulation=2,
    warmup=0.03,
    max_length=1024,
    template="vicuna_v1",
    image_fit="crop",
    gradient_checkpointing=True,
    workers=4,
    save_steps=500,
    baseline_visual_prompts=10,
    baseline_textual_prompts=30,
    method_learning_rates=MappingProxyType({"lora": 2e-4, "full": 2e-5}),
)
NANO_DEFAULTS = BaseDefaults(
    visual_prompts=6,
    textual_prompts=8,
    learning_rate=3e-2,
    visual_lr=3e-2,
    textual_lr=3e-2,
    interaction_lr=5e-3,
    max_steps=300,
    batch_size=64,
    accumulation=1,
    warmup=0.03,
    max_length=160,
    template="plain",
    image_fit="base",
    gradient_checkpointing=False,
    save_steps=100,
    baseline_visual_prompts=6,
    baseline_textual_prompts=8,
    method_learning_rates=MappingProxyType({"lora": 2e-3, "full": 3e-4}),
)


def _smolvlm(width: int, inner: int, layers: int, heads: int, key_heads: int, sizes: Mapping[str, int]) -> Geometry:
    """A first-generation SmolVLM: the widths of its config.json, and the parameters that follow from them."""
    config = {
        "model_type": "idefics3",
        "scale_factor": 4,
        "tie_word_embeddings": False,
        "vision_config": {"hidden_size": 768, "image_size": 512, "patch_size": 16, "num_attention_heads": 12},
        "text_config": {
            "model_type": "llama",
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": key_heads,
            "head_dim": 64,
            "vocab_size": 49280,
            "max_position_embeddings": 8192,
        },
    }
    return FamilyGeometry(
        "idefics3",
        VisionGeometry("idefics3_vision", 768, 3072, 12, 12, 3, 512, 16, has_head=False),
        TextGeometry(
            "llama",
            49280,
            width,
            inner,
            layers,
            heads,
            key_heads,
            64,
            qkv_bias=False,
            output_bias=False,
            mlp_bias=False,
        ),
        "linear",
        projector_bias=True,
        feature_layers=(12,),
        feature_strategy="full",
        tied_lm_head=False,
        config=config,
        merged_patches=16,
        sizes=MappingProxyType(dict(sizes)),
    )


SMOLVLM_256M = _smolvlm(
    576, 1536, 30, 9, 3,
    {"vision_tower": 86_433_024, "projector": 7_077_888, "language_model": 134_588_736, "lm_head": 28_385_280},
)  # fmt: skip
SMOLVLM_500M = _smolvlm(
    960, 2560, 32, 15, 5,
    {"vision_tower": 86_433_024, "projector": 11_796_480, "language_model": 361_944_000, "lm_head": 47_308_800},
)  # fmt: skip
# Small enough for a laptop: small batches, and images cut into up to 17 tiles of 64 tokens.
LAPTOP_DEFAULTS = replace(
    PAPER_DEFAULTS, template="base", image_fit="base", batch_size=4, accumulation=8, max_length=2048
)


_ENTRIES = (
    BaseEntry("nano", None, NANO_FOLDER, None, NANO_DEFAULTS),
    # llava-hf stores two bytes per parameter.
    BaseEntry(
        "llava-1.5-7b",
        "llava-hf/llava-1.5-7b-hf",
        None,
        LLAVA_15_7B,
        PAPER_DEFAULTS,
        download_bytes=2 * LLAVA_15_7B.total_parameters,
    ),
    BaseEntry(
        "llava-1.5-13b",
        "llava-hf/llava-1.5-13b-hf",
        None,
        LLAVA_15_13B,
        PAPER_DEFAULTS,
        download_bytes=2 * LLAVA_15_13B.total_parameters,
    ),
    BaseEntry(
        "smolvlm-256m",
        "HuggingFaceTB/SmolVLM-256M-Instruct",
        None,
        SMOLVLM_256M,
        LAPTOP_DEFAULTS,
        download_bytes=2 * SMOLVLM_256M.total_parameters,
    ),
    BaseEntry(
        "smolvlm-500m",
        "HuggingFaceTB/SmolVLM-500M-Instruct",
        None,
        SMOLVLM_500M,
        LAPTOP_DEFAULTS,
        download_bytes=2 * SMOLVLM_500M.total_parameters,
    ),
    BaseEntry(
        "llava-v1-7b",
        None,
        None,
        LLAVA_V1_7B,
        PAPER_DEFAULTS,
        parts=(
            "lmsys/vicuna-7b-v1.3",
            "openai/clip-vit-large-patch14",
            "liuhaotian/llava-pretrain-vicuna-7b-v1.3",
        ),
    ),
)


def base_names() -> tuple[str, ...]:
    """Return the aliases of known bases."""
    return tuple(entry.name for entry in _ENTRIES)


def find_base(name: str) -> BaseEntry | None:
    """Return the known base with this alias or Hub id; None for any other name."""
    return next((entry for entry in _ENTRIES if name in (entry.name, entry.repo_id)), None)


def resolve_base_name(from_flag: str | None, from_adapter: str | None) -> str:
    """Return the base to use: the flag's, else the adapter's, else ``$M2PT_BASE``, else ``llava-1.5-7b``."""
    return from_flag or from_adapter or os.environ.get("M2PT_BASE") or DEFAULT_BASE


def entry_of(base: str) -> BaseEntry:
    """Look up a base: an alias, a folder with a ``config.json`` (or that file), or a Hub id (its config is fetched).

    An alias takes precedence over a folder of that name (``./nano`` is the folder), a folder over a Hub id.

    Raises:
        UnavailableError: no such name, folder or repository, or the model is untested.
    """
    entry = find_base(base)
    if entry is not None:
        return entry
    folder = Path(base).expanduser()
    if folder.name == "config.json" and folder.is_file():
        folder = folder.parent
    if base and folder.is_dir():
        return _unlisted(str(folder.resolve()), read_geometry(folder), folder=folder.resolve())
    if base and folder.exists():
        raise UnavailableError(f"the base {base} is a file", "give the folder that holds its config.json")
    if not HUB_ID.fullmatch(base) or base.startswith("."):
        what = "a folder" if "/" in base or base.startswith(".") else "a known base, a folder or a Hub id"
        raise UnavailableError(
            f"the base {base!r} is not {what}{closest(base, base_names())}",
            f"known bases: {', '.join(base_names())}; or name a Hub id (owner/name) or a folder",
        )
    from m2pt_cli.models.hub import fetch_config

    return _unlisted(base, read_geometry(fetch_config(base)), repo_id=base)


def _unlisted(name: str, geometry: Geometry, *, repo_id: str | None = None, folder: Path | None = None) -> BaseEntry:
    """Return the entry of another base; defaults are those of a known base of this geometry or the paper's."""
    known = (entry for entry in _ENTRIES if entry.known_geometry or (NANO_FOLDER / "config.json").is_file())
    defaults = next((entry.defaults for entry in known if entry.geometry == geometry), PAPER_DEFAULTS)
    if geometry.model_type != "llava":
        # The prompt format differs between releases, and only the processor can cut an image into tiles.
        defaults = replace(defaults, template="base", image_fit="base")
    return BaseEntry(name, repo_id, folder, geometry, defaults)


def read_geometry(folder: Path) -> Geometry:
    """Read the geometry from a folder's ``config.json``.

    Raises:
        UnavailableError: there is no config.json, it can't be read, or its model is untested.
    """
    file = folder / "config.json"
    if not file.is_file():
        if (folder / CONFIG_FILE).is_file():
            raise UnavailableError(f"{folder} holds an adapter, not a base", f"give it with --adapter {folder}")
        if folder == NANO_FOLDER:
            raise UnavailableError(
                "the files of the embedded base nano are missing from this installation",
                "install it again: python -m pip install --force-reinstall m2pt_cli",
            )
        raise UnavailableError(
            f"{folder} holds no config.json, so it is not a base",
            "a base is a folder as save_pretrained writes it: config.json, *.safetensors, tokenizer and processor",
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UnavailableError(f"{file} can't be read: {error}", DAMAGED_HINT) from None
    if not isinstance(config, dict):
        raise UnavailableError(f"{file} is damaged: a JSON mapping was expected", DAMAGED_HINT)
    return geometry_from_config(config)
