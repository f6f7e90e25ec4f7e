"""Locate or download the parts of LLaVA v1, and write the base's config, tokenizer and processor ("texts")."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2pt_cli.convert.sentencepiece import IMAGE_TOKEN, image_tokenizer, read_model
from m2pt_cli.convert.weights import LAYOUTS, weight_files
from m2pt_cli.errors import AdapterError, InputError, M2PTError, UnavailableError
from m2pt_cli.families.geometry import Geometry
from m2pt_cli.models.catalog import geometry_from_config
from m2pt_cli.models.hub import fetch_chosen

Report = Callable[[str], None]
Sizes = dict[str, int]

PROJECTOR = "mm_projector.bin"
PARTS_HINT = "LLaVA v1 is made of Vicuna, CLIP and LLaVA's stage-1 mm_projector.bin"
_CLIP_TEXTS = ("config.json", "preprocessor_config.json")
_LLM_TEXTS = ("config.json", "tokenizer.model")
# If a repository has the same weights twice, safetensors is preferred: it can't contain code.
_WEIGHTS = (("model", ".safetensors"), ("pytorch_model", ".bin"))


@dataclass(frozen=True)
class OriginalParts:
    """The parts of a LLaVA v1, each a folder or a Hub id; the projector may also be a file."""

    language_model: str
    vision_tower: str
    projector: str


@dataclass(frozen=True)
class PartFolders:
    """The local paths of the parts; ``projector`` is a file, or None if only texts were requested."""

    language_model: Path
    vision_tower: Path
    projector: Path | None


def fetch_parts(parts: OriginalParts, *, report: Report | None = None) -> PartFolders:
    """Locate all files of the parts; files that are not in the cache are downloaded.

    Raises:
        InputError: a local part is missing or lacks a file.
        UnavailableError: a part on the Hub is not available.
        DeviceError: the disk is too small.
    """
    texts = fetch_part_texts(parts, report=report)
    return PartFolders(
        _part(parts.language_model, _LLM_TEXTS, with_weights=True, report=report),
        _part(parts.vision_tower, _CLIP_TEXTS, with_weights=True, report=report),
        texts.projector or _projector(parts.projector, report),
    )


def fetch_part_texts(parts: OriginalParts, *, report: Report | None = None) -> PartFolders:
    """Locate only configs, tokenizer and image processor, without the weights. Raises as `fetch_parts`."""
    return PartFolders(
        _part(parts.language_model, _LLM_TEXTS, with_weights=False, report=report),
        _part(parts.vision_tower, _CLIP_TEXTS, with_weights=False, report=report),
        None,
    )


def fetch_checkpoint(repo_id: str, *, report: Report | None = None) -> Path:
    """Download config and weights of an official checkpoint; returns its folder. Raises AdapterError."""

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
    path = Path(name).expanduser()
    if path.is_dir():
        path /= PROJECTOR
    if path.is_file():
        return path
    if _is_path(name) or path.name == PROJECTOR:
        raise InputError(f"there is no file {path}", f"give {PROJECTOR}, its folder or a Hub id (owner/name)")

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
    """Whether a name can't be a Hub id: that has one slash, does not start like a path, and is in no local folder."""
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


# The fields that are copied from the configs of the parts; no other field affects the model.
_SHARED = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "attention_dropout",
    "initializer_range",
)  # fmt: skip
_VISION = (*_SHARED, "num_channels", "image_size", "patch_size", "layer_norm_eps", "projection_dim")
_TEXT = (
    *_SHARED, "vocab_size", "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta",
    "rope_scaling", "rope_parameters", "attention_bias", "mlp_bias", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
# The template vicuna_v1 of m2pt_cli.data.chat as Jinja; a test checks that both give the same text.
CHAT_TEMPLATE = (
    "{% if messages[0].role != 'system' %}"
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. {% endif %}"
    "{% for message in messages %}"
    "{% if message.role == 'user' %}USER: {% elif message.role == 'assistant' %}ASSISTANT: {% endif %}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message.role == 'assistant' %}</s>{% else %} {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def write_texts(parts: PartFolders, folder: Path) -> Geometry:
    """Write all files of a base except its weights, ``config.json`` last; returns its geometry.

    Raises:
        UnavailableError: a part's config, tokenizer or image processor can't be used.
    """
    partial = folder / f".texts.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        config = _write(parts, partial)
        for file in sorted(partial.iterdir(), key=lambda file: (file.name == "config.json", file.name)):
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return geometry_from_config(config)


def _write(parts: PartFolders, folder: Path) -> dict[str, Any]:
    from transformers import GenerationConfig, LlavaProcessor

    from m2pt_cli.families.processor import quiet_transformers

    tokenizer = _tokenizer(parts.language_model)
    with quiet_transformers():
        config = _config(parts, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
        _require_embeddings(config, tokenizer, parts)
        processor = LlavaProcessor(
            _image_processor(parts.vision_tower, config.vision_config.image_size),
            tokenizer,
            patch_size=config.vision_config.patch_size,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=CHAT_TEMPLATE,
        )
        processor.save_pretrained(folder)
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        GenerationConfig(**ids).save_pretrained(folder)
        config.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def _config(parts: PartFolders, image_token: int) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    from m2pt_cli.families.linear_projector import mark_linear

    text, clip = _json(parts.language_model), _json(parts.vision_tower)
    vision = clip.get("vision_config") if clip.get("model_type") == "clip" else clip
    if text.get("model_type") != "llama":
        raise UnavailableError(
            f"{parts.language_model} is a {text.get('model_type')}, not a LLaMA such as Vicuna", PARTS_HINT
        )
    if not isinstance(vision, dict) or vision.get("model_type", "clip_vision_model") != "clip_vision_model":
        raise UnavailableError(f"{parts.vision_tower} is a {clip.get('model_type')}, not a CLIP", PARTS_HINT)
    try:
        config: Any = LlavaConfig(
            vision_config=CLIPVisionConfig(**_selected(vision, _VISION)),
            text_config=LlamaConfig(**_selected(text, _TEXT)),
            image_token_index=image_token,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            tie_word_embeddings=False,
        )
    except Exception as error:  # transformers' validation of configs raises errors of several libraries
        first = " ".join(str(error).split())[:300] or type(error).__name__
        raise UnavailableError(f"the config.json of a part can't be used: {first}", "copy the folder again") from None
    config.architectures = ["LlavaForConditionalGeneration"]
    config.image_seq_length = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    return mark_linear(config)


def _selected(config: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: config[name] for name in names if config.get(name) is not None}


def _json(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UnavailableError(f"{folder / 'config.json'} can't be read: {error}", "copy the folder again") from None
    if not isinstance(config, dict):
        raise UnavailableError(f"{folder / 'config.json'} is damaged", "copy the folder again")
    return config


def _tokenizer(folder: Path) -> Any:
    file = folder / "tokenizer.model"
    try:
        return image_tokenizer(read_model(file))
    except (OSError, ValueError) as error:
        raise UnavailableError(f"{file} can't be used: {error}", "copy or download that file again") from None


def _require_embeddings(config: Any, tokenizer: Any, parts: PartFolders) -> None:
    """Raise UnavailableError unless every id of the tokenizer has an embedding."""
    embeddings = config.text_config.vocab_size
    if len(tokenizer) > embeddings:
        raise UnavailableError(
            f"the tokenizer in {parts.language_model} has {len(tokenizer):,} tokens, "
            f"its model {embeddings:,} embeddings",
            "copy the folder again",
        )


def _image_processor(folder: Path, image_size: int) -> Any:
    from transformers import CLIPImageProcessorPil

    try:
        processor: Any = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
        crop = dict(processor.crop_size)
    except Exception as error:  # of several libraries, as in _config
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnavailableError(
            f"{folder / 'preprocessor_config.json'} can't be used: {first}", "copy or download that file again"
        ) from None
    if crop != {"height": image_size, "width": image_size}:
        raise UnavailableError(
            f"{folder / 'preprocessor_config.json'} crops images to {crop}, but the tower takes {image_size} pixels",
            "copy the folder again",
        )
    return processor
