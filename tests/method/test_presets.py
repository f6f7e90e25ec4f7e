"""Training methods by name, and their size on the 7B bases as in the paper."""

from __future__ import annotations

import pytest
import torch
from fixtures.models import batch_for, tiny_llava, tiny_llava_next
from peft import LoraConfig, get_peft_model
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from m2pt_cli.method import M2PTConfig, MethodError, parts_of, preset, train_in_fp32


@pytest.mark.parametrize(
    ("method", "prompts"), [("m2pt", (4, 3)), ("visual", (4, 0)), ("textual", (0, 3)), ("interaction", (0, 0))]
)
def test_prompts_of_each_method(method: str, prompts: tuple[int, int]) -> None:
    config = preset(
        method,
        tiny_llava().config,
        num_visual_prompts=4,
        num_textual_prompts=3,
        init="normal",
        visual_tokens="official",
    )
    assert isinstance(config, M2PTConfig)
    assert (config.num_visual_prompts, config.num_textual_prompts) == prompts
    assert (config.interaction, config.init, config.visual_tokens) == ("auto", "normal", "official")


def test_lora_and_full() -> None:
    config = preset("lora", tiny_llava().config)
    assert isinstance(config, LoraConfig) and (config.r, config.lora_alpha) == (16, 32)
    assert preset("full", tiny_llava_next().config) is None
    model = get_peft_model(tiny_llava(decoder="qwen2"), preset("lora", tiny_llava().config, lora_rank=2))
    touched = {name.split(".lora_")[0] for name in parts_of(model) if "lora_" in name}
    assert len(touched) == 3 * 7 and all(".language_model.layers." in name for name in touched)


def test_lora_on_a_narrow_base_trains_its_projector_in_fp32() -> None:
    base = tiny_llava(dtype=torch.bfloat16)
    model = get_peft_model(base, preset("lora", base.config, lora_rank=2))
    train_in_fp32(model, "default")
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    out = model(**batch_for(base, [8, 6]))
    assert out.logits.dtype == torch.bfloat16
    out.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_refusals() -> None:
    with pytest.raises(MethodError, match="no method 'prefix'"):
        preset("prefix", tiny_llava().config)
    with pytest.raises(MethodError, match="type 'llama'"):
        preset("m2pt", LlamaConfig())
    with pytest.raises(MethodError, match="num_visual_prompts"):
        preset("m2pt", tiny_llava().config, num_visual_prompts=-1)


def llava_7b(projector: str) -> LlavaForConditionalGeneration:
    """LLaVA v1 or 1.5 of 7B on the meta device: shapes without weights."""
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        image_size=224 if projector == "linear" else 336, patch_size=14, projection_dim=768,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text))
        if projector == "linear":
            model.model.multi_modal_projector = torch.nn.Linear(1024, 4096)
    return model


@pytest.mark.parametrize(
    ("projector", "method", "prompts", "trained"),
    [
        ("linear", "m2pt", (10, 10), 5_754_880),
        ("linear", "m2pt", (20, 10), 6_000_640),
        ("linear", "m2pt", (10, 20), 7_065_600),
        ("mlp", "m2pt", (20, 10), 6_000_640),
        ("linear", "lora", (0, 0), 44_175_360),
        ("mlp", "lora", (0, 0), 60_956_672),
    ],
)
def test_size_on_a_7b_base(projector: str, method: str, prompts: tuple[int, int], trained: int) -> None:
    base = llava_7b(projector)
    config = preset(method, base.config, num_visual_prompts=prompts[0], num_textual_prompts=prompts[1])
    model = get_peft_model(base, config, low_cpu_mem_usage=True)
    assert model.get_nb_trainable_parameters()[0] == trained
