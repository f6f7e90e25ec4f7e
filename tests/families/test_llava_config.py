"""config.json is read as transformers reads it; unsupported models are rejected by name."""

from __future__ import annotations

from typing import Any

import pytest

from m2pt_cli.errors import UnavailableError
from m2pt_cli.families.llava_config import TEXT_DEFAULTS, VISION_DEFAULTS, geometry_from_config
from m2pt_cli.models.catalog import LLAVA_15_7B

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


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": ["llava"]}, "the base is Llava"),
        ({"model_type": 7, "architectures": 4}, "the base is 7"),
        ({"model_type": "x", "architectures": {"a": 1}}, "the base is x"),
        ({"vision_config": {"model_type": [1]}}, "vision tower is"),
        ({"text_config": {"model_type": {}}}, "language model is"),
        ({"text_config": "llama"}, "text_config is 'llama'"),
        ({"vision_config": {"patch_size": 0}}, "patch_size is 0"),
        ({"vision_config": {"patch_size": -8}}, "patch_size is -8"),
        ({"vision_config": {"patch_size": 64, "image_size": 32}}, "patches of 64 pixels in images of 32"),
        ({"vision_config": {"image_size": float("inf")}}, "image_size is inf"),
        ({"vision_config": {"hidden_size": True}}, "hidden_size is True"),
        ({"text_config": {"num_attention_heads": 0}}, "num_attention_heads is 0"),
        ({"text_config": {"num_hidden_layers": -3}}, "num_hidden_layers is -3"),
        ({"text_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers is 1000000000"),
        ({"text_config": {"hidden_size": float("nan")}}, "hidden_size is nan"),
        ({"text_config": {"hidden_size": 2, "num_attention_heads": 4, "num_key_value_heads": 4}}, "head_dim is 0"),
        ({"text_config": {"num_attention_heads": 32, "num_key_value_heads": 5}}, "32 attention heads can't share 5"),
        ({"vision_feature_layer": 99}, "vision_feature_layer is 99"),
        ({"vision_feature_layer": []}, "vision_feature_layer is"),
        ({"vision_feature_select_strategy": "most"}, "neither default nor full"),
        ({"mm_projector_type": ["linear"]}, "projector is"),
    ],
)
def test_nonsense_in_a_config_is_named_with_a_next_step(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UnavailableError, match=named) as refused:
        geometry_from_config(LLAVA_15_CONFIG | change)
    assert refused.value.hint


def test_several_feature_layers() -> None:
    assert geometry_from_config(LLAVA_15_CONFIG | {"vision_feature_layer": [-2, 5]}).feature_layers == (-2, 5)
