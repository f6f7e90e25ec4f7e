"""A config.json read as transformers reads it, and models refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from m2pt_cli.bases.catalog import LLAVA_15_7B
from m2pt_cli.bases.config import TEXT_DEFAULTS, VISION_DEFAULTS, geometry_from_config
from m2pt_cli.errors import UnavailableError

LLAVA_15_CONFIG: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "model_type": "llava",
    "text_config": {"model_type": "llama", "vocab_size": 32064, "max_position_embeddings": 4096},
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
    },
}


def test_a_sparse_config_means_what_transformers_makes_of_it() -> None:
    # llava-hf's own file leaves out all widths of the language model.
    assert geometry_from_config(LLAVA_15_CONFIG) == LLAVA_15_7B
    without_vision = {key: value for key, value in LLAVA_15_CONFIG.items() if key != "vision_config"}
    assert geometry_from_config(without_vision) == LLAVA_15_7B


def test_defaults_are_those_of_transformers() -> None:
    from transformers import CONFIG_MAPPING

    for model_type, values in (VISION_DEFAULTS | TEXT_DEFAULTS).items():
        config = CONFIG_MAPPING[model_type]()
        for name, value in values.items():
            expected = config.num_attention_heads if name == "num_key_value_heads" and value is None else value
            # Older releases leave vision_use_head to the model, whose default is the same.
            assert getattr(config, name, value) == expected, (model_type, name)


def test_without_a_vision_config_transformers_builds_the_large_tower() -> None:
    from transformers import LlavaConfig

    tower = LlavaConfig().vision_config
    geometry = geometry_from_config({"model_type": "llava"}).vision
    assert (tower.hidden_size, tower.intermediate_size, tower.num_hidden_layers) == (1024, 4096, 24)
    assert (geometry.hidden_size, geometry.intermediate_size, geometry.num_layers) == (1024, 4096, 24)
    assert (geometry.image_size, geometry.patch_size) == (tower.image_size, tower.patch_size)


def test_image_tokens_of_siglip_have_no_class_token() -> None:
    config = LLAVA_15_CONFIG | {
        "vision_config": {"model_type": "siglip_vision_model", "image_size": 384, "patch_size": 14},
        "vision_feature_select_strategy": "full",
    }
    assert geometry_from_config(config).image_tokens("patches", 5) == 27 * 27


def test_image_tokens_of_llava_next_depend_on_the_image() -> None:
    geometry = geometry_from_config(LLAVA_15_CONFIG | {"model_type": "llava_next"})
    with pytest.raises(ValueError, match="size of the image"):
        geometry.image_tokens("patches", 0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "qwen2_vl", "architectures": ["Qwen2VLForConditionalGeneration"]}, "Qwen2VLForConditional"),
        ({"model_type": "qwen2_vl", "architectures": None}, "qwen2_vl"),
        ({"model_type": None, "architectures": []}, "without a model_type"),
        ({"text_config": {"model_type": "phi"}}, "phi"),
        ({"vision_config": {"model_type": "pixtral"}}, "pixtral"),
        ({"mm_projector_type": "mlp4x_gelu"}, "mlp4x_gelu"),
        ({"text_config": {"hidden_size": "wide"}}, "damaged"),
        ({"text_config": [1]}, "damaged"),
        ({"vision_feature_layer": "last"}, "damaged"),
    ],
)
def test_what_was_never_tested_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UnavailableError, match=named):
        geometry_from_config(LLAVA_15_CONFIG | change)


def test_several_feature_layers() -> None:
    assert geometry_from_config(LLAVA_15_CONFIG | {"vision_feature_layer": [-2, 5]}).feature_layers == (-2, 5)
