"""Geometry of models other than LLaVA, from the config alone: transformers builds the model on the meta device.

LLaVA's own geometry is computed without torch (see `geometry`), because its bases are counted before torch is imported.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from m2pt_cli.errors import UnavailableError
from m2pt_cli.families.family import Family, family_of
from m2pt_cli.families.geometry import Geometry, TextGeometry, VisionGeometry, Weight

_DAMAGED_HINT = "copy or download the base's config.json again"
_LARGEST = 10_000_000


@dataclass(frozen=True)
class FamilyGeometry(Geometry):
    """The geometry of a whole model of a family other than LLaVA.

    Attributes:
        config: the content of its ``config.json``.
        merged_patches: how many patches become one token.
        sizes: parameters by part, if they are known without building the model.
    """

    config: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    merged_patches: int = 1
    sizes: Mapping[str, int] | None = field(default=None, compare=False, repr=False)

    def weights(self) -> Iterator[Weight]:
        yield from _weights(json.dumps(dict(self.config), sort_keys=True))

    @property
    def merged(self) -> int:
        return self.merged_patches

    @property
    def group_sizes(self) -> dict[str, int]:
        return dict(self.sizes) if self.sizes is not None else super().group_sizes

    def identity(self) -> dict[str, Any]:
        kept = [f.name for f in dataclasses.fields(self) if f.name not in ("config", "sizes")]
        return {name: value for name, value in dataclasses.asdict(self).items() if name in kept}

    def image_tokens(self, visual_tokens: str, num_visual_prompts: int) -> int:
        raise ValueError(f"the image tokens of a {self.model_type} depend on the size of the image")


def measured_geometry(config: Mapping[str, Any], sizes: Mapping[str, int] | None = None) -> FamilyGeometry:
    """Return the geometry for a config of a family other than LLaVA.

    Args:
        config: the content of ``config.json``; missing keys have transformers' defaults.
        sizes: parameters by part, if they are known.

    Raises:
        UnavailableError: the family, tower or decoder was never tested, or the config is damaged.
    """
    from huggingface_hub.errors import StrictDataclassError

    family = family_of(config.get("model_type"))
    wrong = (StrictDataclassError, TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError, RecursionError)
    try:
        whole = _config(config)
        vision, text = whole.vision_config, whole.get_text_config()
        geometry = FamilyGeometry(
            model_type=whole.model_type,
            vision=VisionGeometry(
                model_type=vision.model_type,
                hidden_size=_size(vision, "hidden_size"),
                intermediate_size=_size(vision, "intermediate_size"),
                num_layers=_size(vision, "num_hidden_layers"),
                num_heads=_size(vision, "num_attention_heads"),
                num_channels=_size(vision, "num_channels"),
                image_size=_side(vision.image_size),
                patch_size=_side(vision.patch_size),
                has_head=False,
            ),
            text=TextGeometry(
                model_type=text.model_type,
                vocab_size=_size(text, "vocab_size"),
                hidden_size=_size(text, "hidden_size"),
                intermediate_size=_size(text, "intermediate_size"),
                num_layers=_size(text, "num_hidden_layers"),
                num_heads=_size(text, "num_attention_heads"),
                num_key_value_heads=_size(text, "num_key_value_heads"),
                head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
                qkv_bias=False,
                output_bias=False,
                mlp_bias=False,
            ),
            projector="linear" if family.projector_is_linear else "mlp",
            projector_bias=True,
            feature_layers=family.feature_layers(whole, vision.num_hidden_layers),
            feature_strategy=getattr(whole, "vision_feature_select_strategy", "full"),
            tied_lm_head=bool(whole.tie_word_embeddings),
            config=dict(config),
            merged_patches=family.merged(whole),
            sizes=sizes,
        )
    except wrong as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnavailableError(f"the base's config.json is damaged: {first[:200]}", _DAMAGED_HINT) from None
    decoders = [name.removesuffix("Model").lower() for name in family.text.classes]
    if geometry.text.model_type not in decoders:
        raise UnavailableError(
            f"the base's language model is a {geometry.text.model_type}, which m2pt was never tested with in a "
            f"{family.name}",
            f"language models that work: {', '.join(decoders)}",
        )
    return geometry


def _config(config: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    values = {key: value for key, value in config.items() if key != "model_type"}
    return AutoConfig.for_model(config["model_type"], **values)


@lru_cache(maxsize=8)
def _weights(config: str) -> tuple[Weight, ...]:
    """Return every weight once, from a model on the meta device; a tied ``lm_head`` is not listed."""
    import torch
    import transformers

    whole = _config(json.loads(config))
    family = family_of(whole.model_type)
    with torch.device("meta"):
        model = getattr(transformers, family.classes[whole.model_type])(whole)
    return tuple(Weight(_group(name, family), name, tuple(p.shape)) for name, p in model.named_parameters())


def _group(name: str, family: Family) -> str:
    for group, path in (("vision_tower", family.vision.path), ("projector", family.projector), ("lm_head", "lm_head")):
        if name.startswith(f"{path}."):
            return group
    return "language_model"


def _size(config: Any, name: str) -> int:
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LARGEST:
        raise ValueError(f"{name} is {value!r:.80}, not a number from 1 to {_LARGEST}")
    return value


def _side(value: Any) -> int:
    """Return the side in pixels, from a number or from an equal height and width."""
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) != 1:
        raise ValueError(f"images of {value!r:.80} pixels are no squares")
    (side,) = sides
    if isinstance(side, bool) or not isinstance(side, int) or not 0 < side <= _LARGEST:
        raise ValueError(f"images of {value!r:.80} pixels can't be")
    return side
