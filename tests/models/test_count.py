"""Parameter counts: the paper's table, and modules on the meta device for random geometries."""

from __future__ import annotations

import dataclasses
import json
import random
import warnings
from pathlib import Path
from typing import Any

import pytest

from m2pt_cli.errors import AdapterError, SettingsError
from m2pt_cli.families.geometry import Geometry
from m2pt_cli.families.llava_config import geometry_from_config
from m2pt_cli.models.adapters import read_adapter
from m2pt_cli.models.catalog import LLAVA_15_7B, LLAVA_15_13B, LLAVA_V1_7B
from m2pt_cli.models.count import GROUPS, Recipe, count_adapter, count_parameters, trained_weights, without_effect
from m2pt_cli.settings import METHODS


@pytest.mark.parametrize(
    ("visual", "textual", "prompts", "with_interaction", "with_lm_head"),
    [
        (10, 10, 1_556_480, 5_754_880, 136_826_880),
        (20, 10, 1_802_240, 6_000_640, 137_072_640),
        (10, 20, 2_867_200, 7_065_600, 138_137_600),
    ],
)
def test_the_papers_table(visual: int, textual: int, prompts: int, with_interaction: int, with_lm_head: int) -> None:
    for options, expected in (
        ({"interaction": "none"}, prompts),
        ({}, with_interaction),
        ({"train_lm_head": True}, with_lm_head),
    ):
        counts = count_parameters("b", LLAVA_V1_7B, Recipe(visual_prompts=visual, textual_prompts=textual, **options))
        assert counts.trainable == expected
        assert counts.total == 7_045_793_792
        assert counts.percent == 100 * expected / 7_045_793_792
    groups = count_parameters("b", LLAVA_V1_7B, Recipe(visual_prompts=visual, textual_prompts=textual)).groups
    assert groups["visual_prompts"] == 24_576 * visual
    assert groups["textual_prompts"] == 131_072 * textual
    assert groups["interaction"] == 4_198_400


@pytest.mark.parametrize(
    ("geometry", "recipe", "trainable", "percent"),
    [
        (LLAVA_V1_7B, Recipe(), 6_000_640, 0.085),
        (LLAVA_15_7B, Recipe(), 6_000_640, 0.085),
        (LLAVA_V1_7B, Recipe(method="lora"), 44_175_360, 0.627),
        (LLAVA_15_7B, Recipe(method="lora"), 60_956_672, 0.863),
        (LLAVA_V1_7B, Recipe(method="visual", visual_prompts=10), 4_444_160, 0.063),
        (LLAVA_V1_7B, Recipe(method="textual", textual_prompts=30), 8_130_560, 0.115),
        (LLAVA_15_13B, Recipe(), 20 * 24 * 1024 + 10 * 40 * 5120 + 1024 * 5120 + 5120, 0.058),
        (LLAVA_V1_7B, Recipe(method="full"), 7_045_793_792 - 303_179_776, 95.697),
    ],
)
def test_methods_on_known_bases(geometry: Geometry, recipe: Recipe, trainable: int, percent: float) -> None:
    counts = count_parameters("b", geometry, recipe)
    assert (counts.trainable, round(counts.percent, 3)) == (trainable, percent)
    assert tuple(counts.groups) == GROUPS and sum(counts.groups.values()) == trainable


def test_prompts_of_unread_layers_have_no_effect() -> None:
    assert without_effect(LLAVA_V1_7B, Recipe()) == 20 * 1024
    # The authors' tokens: row 0 of the last layer's prompts is dropped.
    assert without_effect(LLAVA_V1_7B, Recipe(visual_tokens="official")) == 1024
    assert without_effect(LLAVA_V1_7B, Recipe(visual_prompts=0)) == 0
    assert without_effect(LLAVA_V1_7B, Recipe(method="lora")) == 0
    earlier = dataclasses.replace(LLAVA_V1_7B, feature_layers=(-4, -8))
    assert without_effect(earlier, Recipe(visual_prompts=5)) == 3 * 5 * 1024
    last = dataclasses.replace(LLAVA_V1_7B, feature_layers=(-1,))
    assert without_effect(last, Recipe()) == 0


def test_bad_recipes_name_every_fault() -> None:
    with pytest.raises(SettingsError) as caught:
        Recipe(method="m2tp", visual_prompts=-1, interaction="mlp", lora_rank=0)
    for part in ("'m2tp'", "Did you mean 'm2pt'", "--visual-prompts -1", "'mlp'", "--lora-rank 0"):
        assert part in caught.value.message
    with pytest.raises(SettingsError, match="nothing is left to train"):
        count_parameters("b", LLAVA_V1_7B, Recipe(visual_prompts=0, textual_prompts=0, interaction="none"))
    with pytest.raises(SettingsError, match="tied"):
        count_parameters("b", dataclasses.replace(LLAVA_V1_7B, tied_lm_head=True), Recipe(train_lm_head=True))


def meta_base(seed: int) -> Any:
    """A LLaVA of random geometry without values."""
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        MistralConfig,
        Qwen2Config,
        SiglipVisionConfig,
    )

    from m2pt_cli.families.linear_projector import linear_projector, mark_linear

    pick = random.Random(seed)
    heads, depth = pick.choice([2, 4, 8]), pick.randint(2, 4)
    sizes = {
        "hidden_size": heads * pick.choice([8, 12]),
        "intermediate_size": pick.randint(20, 90),
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "patch_size": pick.choice([4, 7]),
        "image_size": pick.choice([14, 30]),
        "num_channels": pick.choice([1, 3]),
    }
    is_clip = seed % 3 != 2
    vision = CLIPVisionConfig(**sizes) if is_clip else SiglipVisionConfig(**sizes, vision_use_head=pick.random() < 0.5)
    heads = pick.choice([4, 8])
    tied = pick.random() < 0.3
    text_sizes: dict[str, Any] = {
        "vocab_size": pick.randint(50, 200),
        "hidden_size": heads * pick.choice([6, 10]),
        "intermediate_size": pick.randint(30, 120),
        "num_hidden_layers": pick.randint(1, 4),
        "num_attention_heads": heads,
        "num_key_value_heads": pick.choice([1, 2, heads]),
        "tie_word_embeddings": tied,
    }
    kind = (LlamaConfig, MistralConfig, Qwen2Config)[seed // 2 % 3]
    if kind is LlamaConfig:
        text_sizes |= {"attention_bias": pick.random() < 0.5, "mlp_bias": pick.random() < 0.5}
    if kind is not Qwen2Config and pick.random() < 0.5:
        text_sizes["head_dim"] = 14
    common: dict[str, Any] = {
        "vision_config": vision,
        "text_config": kind(**text_sizes),
        "vision_feature_layer": pick.choice([-2, -1, 1, [-2, 1]]),
        "vision_feature_select_strategy": "default" if is_clip else "full",
        "tie_word_embeddings": tied,
    }
    with torch.device("meta"):
        if seed % 4 == 3:
            return LlavaNextForConditionalGeneration(LlavaNextConfig(**common))
        config = LlavaConfig(**common, multimodal_projector_bias=pick.random() < 0.7)
        if seed % 4 == 0:
            with linear_projector():
                return LlavaForConditionalGeneration(mark_linear(config))
        return LlavaForConditionalGeneration(config)


@pytest.mark.parametrize("seed", range(16))
def test_the_base_equals_modules_on_the_meta_device(seed: int) -> None:
    model = meta_base(seed)
    geometry = geometry_from_config(json.loads(model.config.to_json_string(use_diff=seed % 2 == 0)))
    found = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert {weight.name: weight.shape for weight in geometry.weights()} == found
    assert geometry.total_parameters == model.num_parameters()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(8))
def test_the_method_equals_modules_on_the_meta_device(seed: int, method: str) -> None:
    import peft

    from m2pt_cli.method import parts_of, preset, select_full

    model = meta_base(seed)
    geometry = geometry_from_config(model.config.to_dict())
    pick = random.Random(seed)
    options: dict[str, Any] = {"lora_rank": pick.choice([4, 16]), "interaction": pick.choice(["auto", "none"])}
    if method not in ("lora", "full"):
        options |= {"interaction": pick.choice(["auto", "projector", "residual"])}
        options |= {"train_lm_head": not geometry.tied_lm_head and pick.random() < 0.5}
    visual, textual = pick.choice([(3, 0), (0, 2), (4, 5)]) if method == "m2pt" else (3, 2)
    recipe = Recipe(method=method, visual_prompts=visual, textual_prompts=textual, **options)
    config = preset(method, model.config, num_visual_prompts=visual, num_textual_prompts=textual, **options)
    if config is None:
        select_full(model)
        saved = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = peft.get_peft_model(model, config)
            state = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
        saved = {name: tuple(value.shape) for name, value in state.items()}
    assert {weight.name: weight.shape for weight in trained_weights(geometry, recipe)} == saved
    groups = dict.fromkeys(GROUPS, 0)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for name, part in parts_of(model).items():
        groups[part] += sizes[name]
    counts = count_parameters("b", geometry, recipe)
    assert counts.groups == groups
    assert counts.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)


def saved_adapter(folder: Path, method: str, **options: Any) -> Geometry:
    import peft
    from fixtures.models import tiny_llava

    from m2pt_cli.method import preset, train_in_fp32

    model = tiny_llava()
    config = preset(method, model.config, num_visual_prompts=2, num_textual_prompts=3, **options)
    peft_model = peft.get_peft_model(model, config)
    train_in_fp32(peft_model, "default")
    peft_model.save_pretrained(folder)
    return geometry_from_config(model.config.to_dict())


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("m2pt", {}),
        ("m2pt", {"interaction": "projector", "train_lm_head": True}),
        ("visual", {"interaction": "none"}),
        ("lora", {}),
        ("lora", {"interaction": "none"}),
    ],
)
def test_a_saved_adapter_counts_as_its_recipe(tmp_path: Path, method: str, options: dict[str, Any]) -> None:
    geometry = saved_adapter(tmp_path, method, **options)
    info = read_adapter(str(tmp_path))
    recipe = Recipe(method=method, visual_prompts=2, textual_prompts=3, **options)
    planned = count_parameters("b", geometry, recipe)
    assert count_adapter("b", geometry, info) == planned
    assert planned.bytes == (tmp_path / "adapter_model.safetensors").stat().st_size


def test_an_adapter_of_another_geometry(tmp_path: Path) -> None:
    saved_adapter(tmp_path, "m2pt")
    with pytest.raises(AdapterError, match="does not fit llava-v1-7b"):
        count_adapter("llava-v1-7b", LLAVA_V1_7B, read_adapter(str(tmp_path)))
