"""Which parameters belong to an adapter, and to which of its parts."""

from __future__ import annotations

from collections import Counter

import pytest
from fixtures.models import tiny_llava
from peft import get_peft_model

from m2pt_cli.method import PARTS, adapter_of, adapter_parameters, parts_of, preset, select_full


@pytest.mark.parametrize(
    ("name", "adapter"),
    [
        ("model.vision_tower.encoder.layers.3.self_attn.m2pt_prompts.default", "default"),
        ("model.multi_modal_projector.m2pt_interaction.mine.weight", "mine"),
        ("lm_head.modules_to_save.default.weight", "default"),
        ("model.language_model.layers.0.self_attn.q_proj.lora_A.default.weight", "default"),
        ("model.language_model.layers.0.self_attn.base_layer.q_proj.weight", None),
        ("lm_head.original_module.weight", None),
    ],
)
def test_adapter_of(name: str, adapter: str | None) -> None:
    assert adapter_of(name) == adapter


@pytest.mark.parametrize("projector", ["linear", "mlp"])
def test_parts(projector: str) -> None:
    # 16 x 24 + 24, or the two layers of the MLP
    one, whole = 408, 408 if projector == "linear" else 1008
    lora = 3 * 2 * (4 * 24 + 2 * (24 + 12) + 3 * (24 + 48))
    expected = {
        "m2pt": {"visual_prompts": 4 * 5 * 16, "textual_prompts": 3 * 7 * 24, "interaction": one},
        "visual": {"visual_prompts": 4 * 5 * 16, "interaction": one},
        "textual": {"textual_prompts": 3 * 7 * 24, "interaction": one},
        "interaction": {"interaction": one},
        "lora": {"projector": whole, "language_model": lora},
    }
    for method, parts in expected.items():
        base = tiny_llava(projector=projector)
        config = preset(method, base.config, num_visual_prompts=5, num_textual_prompts=7, lora_rank=2)
        model = get_peft_model(base, config)
        sizes = dict(model.named_parameters())
        found: Counter[str] = Counter()
        for name, part in parts_of(model).items():
            found[part] += sizes[name].numel()
        assert found == parts, method
        assert found.keys() <= set(PARTS)
        counted = sum(p.numel() for _, p in adapter_parameters(model, "default"))
        assert counted == sum(parts.values()) == model.get_nb_trainable_parameters()[0]


def test_output_head_is_a_part_of_its_own() -> None:
    base = tiny_llava()
    model = get_peft_model(base, preset("m2pt", base.config, train_lm_head=True))
    heads = [name for name, part in parts_of(model).items() if part == "lm_head"]
    assert heads == ["base_model.model.lm_head.modules_to_save.default.weight"]


def test_full_fine_tuning_leaves_the_tower_frozen() -> None:
    base = tiny_llava()
    select_full(base)
    trained = Counter(parts_of(base).values())
    assert set(trained) == {"projector", "language_model", "lm_head"}
    frozen = {name for name, p in base.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in base.named_parameters() if ".vision_tower." in name}
