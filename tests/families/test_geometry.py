"""Geometry: image tokens, parameter counts that add up, feature layers."""

from __future__ import annotations

import dataclasses

import pytest

from m2pt_cli.families.geometry import current_name
from m2pt_cli.models.catalog import LLAVA_V1_7B


@pytest.mark.parametrize(
    ("visual_tokens", "prompts", "strategy", "expected"),
    [
        ("patches", 20, "default", 256),
        ("official", 20, "default", 276),
        ("official", 0, "default", 256),
        ("patches", 20, "full", 257),
    ],
)
def test_image_tokens(visual_tokens: str, prompts: int, strategy: str, expected: int) -> None:
    geometry = dataclasses.replace(LLAVA_V1_7B, feature_strategy=strategy)
    assert geometry.image_tokens(visual_tokens, prompts) == expected


def test_groups_add_up_to_the_total() -> None:
    sizes = LLAVA_V1_7B.group_sizes
    assert sum(sizes.values()) == LLAVA_V1_7B.total_parameters == 7_045_793_792
    assert sizes["projector"] == 4_198_400 and sizes["lm_head"] == 131_072_000
    tied = dataclasses.replace(LLAVA_V1_7B, tied_lm_head=True)
    assert tied.total_parameters == 7_045_793_792 - 131_072_000


def test_feature_layers_count_from_either_end() -> None:
    assert LLAVA_V1_7B.feature_indices == (23,)
    several = dataclasses.replace(LLAVA_V1_7B, feature_layers=(-2, 5))
    assert several.feature_indices == (23, 5) and several.feature_size == 2048


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("language_model.model.layers.0.mlp.up_proj.weight", "model.language_model.layers.0.mlp.up_proj.weight"),
        ("model.language_model.layers.0.mlp.up_proj.weight", "model.language_model.layers.0.mlp.up_proj.weight"),
        ("vision_tower.vision_model.pre_layrnorm.bias", "model.vision_tower.pre_layrnorm.bias"),
        ("model.vision_tower.vision_model.pre_layrnorm.bias", "model.vision_tower.pre_layrnorm.bias"),
        ("vision_tower.encoder.layers.1.mlp.fc1.bias", "model.vision_tower.encoder.layers.1.mlp.fc1.bias"),
        ("multi_modal_projector.linear_1.bias", "model.multi_modal_projector.linear_1.bias"),
        ("model.multi_modal_projector.weight", "model.multi_modal_projector.weight"),
        ("image_newline", "model.image_newline"),
        ("model.image_newline", "model.image_newline"),
    ],
)
def test_names_of_every_age(old: str, new: str) -> None:
    assert current_name(old) == new
