"""Reads the geometry of a base from its ``config.json``; untested models are refused by name. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from m2pt_cli.errors import UnavailableError
from m2pt_cli.families.family import LLAVA, MODEL_CLASSES, untested
from m2pt_cli.families.geometry import Geometry, TextGeometry, VisionGeometry
from m2pt_cli.families.measured import measured_geometry

# Values of keys missing from config.json: the defaults of transformers' configuration classes.
VISION_DEFAULTS: dict[str, dict[str, Any]] = {
    "clip_vision_model": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_channels": 3,
        "image_size": 224,
        "patch_size": 32,
    },
    "siglip_vision_model": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_channels": 3,
        "image_size": 224,
        "patch_size": 16,
        "vision_use_head": True,
    },
}
TEXT_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "mistral": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "qwen2": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
}
DAMAGED_HINT = "copy or download the base's config.json again"
# Larger than in any model: a larger value means a damaged file.
_LARGEST, _MOST_LAYERS = 10_000_000, 1_000
# A LLaVA config without a vision_config means CLIP ViT-L/14 at 336 pixels.
_CLIP_LARGE_336 = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}


def geometry_from_config(config: Mapping[str, Any]) -> Geometry:
    """Return the geometry of a transformers LLaVA configuration (the content of ``config.json``).

    ``"mm_projector_type": "linear"`` marks the one-layer projector of LLaVA v1.

    Raises:
        UnavailableError: the model, tower or decoder is untested (the message names it), or the config is damaged.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in MODEL_CLASSES:
        classes = config.get("architectures")
        named = classes[0] if isinstance(classes, list) and classes else None
        raise untested(named or model_type)
    if model_type not in LLAVA.classes:
        return measured_geometry(config)
    vision, text = config.get("vision_config") or _CLIP_LARGE_336, config.get("text_config") or {}
    try:
        tower, decoder = _vision(_mapping("vision_config", vision)), _text(_mapping("text_config", text))
        return Geometry(
            model_type=model_type,
            vision=tower,
            text=decoder,
            projector=_projector(config),
            projector_bias=bool(config.get("multimodal_projector_bias", True)),
            feature_layers=_layers(config.get("vision_feature_layer", -2), tower.num_layers),
            feature_strategy=_strategy(config.get("vision_feature_select_strategy", "default")),
            # For LLaVA-NeXT, transformers reads only the top-level key.
            tied_lm_head=bool(
                config.get("tie_word_embeddings", False)
                or (model_type == "llava" and text.get("tie_word_embeddings", False))
            ),
        )
    except ValueError as error:
        raise UnavailableError(f"the base's config.json is damaged: {error}", DAMAGED_HINT) from None


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is {value!r:.80}, no mapping")
    return value


def _size(values: Mapping[str, Any], name: str, *, most: int = _LARGEST) -> int:
    """Return a count or width within bounds; a damaged config could otherwise list weights for hours."""
    value = values[name]
    # `type()`, because bool is a subclass of int.
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{name} is {value!r:.80}, not a number from 1 to {most:,}")
    return value


def _vision(config: Mapping[str, Any]) -> VisionGeometry:
    model_type = config.get("model_type", "clip_vision_model")
    if not isinstance(model_type, str) or model_type not in VISION_DEFAULTS:
        raise UnavailableError(
            f"the base's vision tower is {model_type}, which m2pt was never tested with",
            "towers that work: " + ", ".join(VISION_DEFAULTS),
        )
    values = {**VISION_DEFAULTS[model_type], **{k: v for k, v in config.items() if v is not None}}
    if _size(values, "patch_size") > _size(values, "image_size"):
        raise ValueError(f"patches of {values['patch_size']} pixels in images of {values['image_size']}")
    return VisionGeometry(
        model_type=model_type,
        hidden_size=_size(values, "hidden_size"),
        intermediate_size=_size(values, "intermediate_size"),
        num_layers=_size(values, "num_hidden_layers", most=_MOST_LAYERS),
        num_heads=_size(values, "num_attention_heads"),
        num_channels=_size(values, "num_channels"),
        image_size=_size(values, "image_size"),
        patch_size=_size(values, "patch_size"),
        has_head=model_type == "siglip_vision_model" and bool(values["vision_use_head"]),
    )


def _text(config: Mapping[str, Any]) -> TextGeometry:
    model_type = config.get("model_type", "llama")
    if not isinstance(model_type, str) or model_type not in TEXT_DEFAULTS:
        raise UnavailableError(
            f"the base's language model is {model_type}, which m2pt was never tested with",
            "decoders that work: " + ", ".join(TEXT_DEFAULTS),
        )
    values = {**TEXT_DEFAULTS[model_type], **{k: v for k, v in config.items() if v is not None}}
    width, heads = _size(values, "hidden_size"), _size(values, "num_attention_heads")
    if values.get("num_key_value_heads") is None:
        values["num_key_value_heads"] = heads
    if values.get("head_dim") is None:
        values["head_dim"] = width // heads
    if heads % _size(values, "num_key_value_heads"):
        raise ValueError(f"{heads} attention heads can't share {values['num_key_value_heads']} of keys and values")
    biased = model_type == "llama" and bool(values["attention_bias"])
    return TextGeometry(
        model_type=model_type,
        vocab_size=_size(values, "vocab_size"),
        hidden_size=width,
        intermediate_size=_size(values, "intermediate_size"),
        num_layers=_size(values, "num_hidden_layers", most=_MOST_LAYERS),
        num_heads=heads,
        num_key_value_heads=values["num_key_value_heads"],
        head_dim=_size(values, "head_dim"),
        qkv_bias=biased or model_type == "qwen2",
        output_bias=biased,
        mlp_bias=model_type == "llama" and bool(values["mlp_bias"]),
    )


def _projector(config: Mapping[str, Any]) -> str:
    name = config.get("mm_projector_type", "mlp2x_gelu")
    projectors = {"linear": "linear", "mlp2x_gelu": "mlp"}
    if not isinstance(name, str) or name not in projectors:
        raise UnavailableError(
            f"the base's projector is {name!r}, which m2pt was never tested with", "projectors that work: linear, mlp"
        )
    return projectors[name]


def _layers(value: Any, count: int) -> tuple[int, ...]:
    """Return the feature layers: i is the input of vision layer i, ``count`` the last output; negative from the end."""
    layers = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not layers or any(type(layer) is not int or not -count - 1 <= layer <= count for layer in layers):
        raise ValueError(f"vision_feature_layer is {value!r:.80}, which a tower of {count} layers does not have")
    return layers


def _strategy(value: Any) -> str:
    if value not in ("default", "full"):
        raise ValueError(f"vision_feature_select_strategy is {value!r:.80}, neither default nor full")
    return str(value)
