"""Adapter configs: defaults, errors that name the value, and the round trip through JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peft import PeftConfig, PeftType

import m2pt_cli
from m2pt_cli.errors import SettingsError
from m2pt_cli.method import M2PTConfig, MethodError


def test_defaults() -> None:
    config = M2PTConfig()
    assert (config.num_visual_prompts, config.num_textual_prompts, config.interaction) == (20, 10, "auto")
    assert (config.visual_tokens, config.train_lm_head, config.init) == ("patches", False, "xavier")
    assert config.peft_type is PeftType("M2PT")
    assert m2pt_cli.M2PTConfig is M2PTConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_visual_prompts": -1}, "num_visual_prompts must be a whole number of at least 0, not -1"),
        ({"num_textual_prompts": 2.5}, "num_textual_prompts must be a whole number of at least 0, not 2.5"),
        ({"num_textual_prompts": True}, "num_textual_prompts must be a whole number of at least 0, not True"),
        ({"interaction": "linear"}, "interaction must be one of auto, projector, residual, mean, none, not 'linear'"),
        ({"visual_tokens": "all"}, "visual_tokens must be one of patches, official, not 'all'"),
        ({"init": "kaiming"}, "init must be one of xavier, normal, zeros, not 'kaiming'"),
        ({"train_lm_head": "yes"}, "train_lm_head must be True or False, not 'yes'"),
        ({"chat_template": 3}, "chat_template must be a string or None, not 3"),
        ({"num_visual_prompts": 0, "num_textual_prompts": 0, "interaction": "none"}, "nothing to train"),
    ],
)
def test_bad_values_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(MethodError) as caught:
        M2PTConfig(**options)
    assert message in caught.value.message
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, SettingsError)
    assert caught.value.exit_code == 2


def test_round_trip(tmp_path: Path) -> None:
    config = M2PTConfig(
        num_visual_prompts=5,
        num_textual_prompts=0,
        interaction="residual",
        visual_tokens="official",
        train_lm_head=True,
        init="normal",
        chat_template="vicuna_v1",
        image_fit="crop",
        base_fingerprint="abc",
    )
    config.save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "M2PT"
    assert PeftConfig.from_pretrained(str(tmp_path)) == config
    assert config.modules_to_save == ["lm_head"]
    assert M2PTConfig(interaction="projector", train_lm_head=True).modules_to_save == [
        "multi_modal_projector",
        "lm_head",
    ]
    assert M2PTConfig(interaction="residual").modules_to_save is None
