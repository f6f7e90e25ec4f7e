"""Reading a base's architecture, and rejecting untested bases by class name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from fixtures.cases import Case, make_case
from fixtures.models import batch_for, tiny_llava, tiny_llava_next
from peft import get_peft_model
from torch import nn
from transformers import LlamaForCausalLM, LlavaForConditionalGeneration, SiglipVisionConfig, StaticCache

from m2pt_cli.method import M2PTConfig, MethodError
from m2pt_cli.method.architecture import longest_text, original, read_architecture
from m2pt_cli.method.calls import cache_argument


def test_geometry() -> None:
    found = read_architecture(tiny_llava(decoder="qwen2", feature_layer=[-2, 1], projector="linear"))
    assert (found.base, found.tower, found.decoder) == (
        "LlavaForConditionalGeneration",
        "CLIPVisionModel",
        "Qwen2Model",
    )
    assert (found.vision_layers, found.vision_width, found.text_layers, found.text_width) == (4, 16, 3, 24)
    assert (found.feature_layers, found.layers_run, found.feature_width) == ((3, 1), 3, 32)
    assert found.linear_projector and found.select == "default"
    assert found.describe() == "4 vision layers of width 16, 3 text layers of width 24"
    assert read_architecture(tiny_llava_next()).base == "LlavaNextForConditionalGeneration"


def test_adapters_do_not_change_what_is_read() -> None:
    for projector in ("linear", "mlp"):
        base = tiny_llava(projector=projector)
        before = read_architecture(base)
        inner = original(base.model.multi_modal_projector)
        model = get_peft_model(base, M2PTConfig(num_visual_prompts=1, num_textual_prompts=1))
        assert read_architecture(model.base_model.model) == before
        assert original(model.base_model.model.model.multi_modal_projector) is inner


def test_a_class_derived_from_a_known_base_is_that_base() -> None:
    class OwnLlava(LlavaForConditionalGeneration):
        pass

    model = OwnLlava(tiny_llava().config)
    assert read_architecture(model).base == "LlavaForConditionalGeneration"


@pytest.mark.parametrize("part", ["base", "vision tower", "language model"])
def test_classes_never_tested(part: str) -> None:
    class Unknown(nn.Module):
        pass

    base: nn.Module = tiny_llava()
    if part == "base":
        base = LlamaForCausalLM(base.config.text_config)
    elif part == "vision tower":
        base.model.vision_tower = Unknown()
    else:
        base.model.language_model = Unknown()
    name = "LlamaForCausalLM" if part == "base" else "Unknown"
    with pytest.raises(MethodError, match=f"never tested on the {part} {name}"):
        get_peft_model(base, M2PTConfig())


def test_parts_that_do_not_fit_their_config() -> None:
    base = tiny_llava()
    base.config.text_config.rope_parameters = {"rope_type": "spiral", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(MethodError, match="'spiral' rotary positions"):
        get_peft_model(base, M2PTConfig())
    base = tiny_llava()
    base.model.language_model.layers = base.model.language_model.layers[:2]
    with pytest.raises(MethodError, match="has 2 layers, its config says 3"):
        get_peft_model(base, M2PTConfig())


ROPES: dict[str, dict[str, Any]] = {
    "linear": {"factor": 2.0},
    "llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32, "factor": 2.0},
    "yarn": {"factor": 2.0, "original_max_position_embeddings": 128},
    "dynamic": {"factor": 2.0},
    "longrope": {
        "short_factor": [1.0, 1.1, 1.2], "long_factor": [2.0, 2.5, 3.0], "original_max_position_embeddings": 64,
        "factor": 4.0,
    },
}  # fmt: skip


def rope_case(rope: str, **options: Any) -> Case:
    parameters = _Hashable({"rope_type": rope, "rope_theta": 1e4, **ROPES[rope]})
    base = tiny_llava(rope_parameters=parameters, **options)
    return make_case(base, num_visual_prompts=2, num_textual_prompts=3)


@pytest.mark.parametrize("rope", ROPES)
def test_scaled_rotary_positions(rope: str) -> None:
    case = rope_case(rope)
    batch = batch_for(case.base, [9, 6], padding="left")
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        found, expected = case.model(**batch).logits, case.reference_logits(batch)
    torch.testing.assert_close(found[real], expected[real], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_frequencies_that_depend_on_the_length(rope: str) -> None:
    """The prompts' keys are those of short texts, whatever the model ran before; longer texts are refused."""
    case = rope_case(rope, max_position_embeddings=64)
    longest = longest_text(case.base.config.text_config)
    rotary = case.model.base_model.model.model.language_model.rotary_emb
    short, long = (
        {"input_ids": torch.full((1, n), 7), "attention_mask": torch.ones(1, n, dtype=torch.long)} for n in (60, 65)
    )
    with torch.no_grad():
        expected = case.reference_logits(short)
        with case.model.disable_adapter():
            case.model(**long)
            grown = rotary.inv_freq.clone()
        torch.testing.assert_close(case.model(**short).logits, expected, atol=1e-4, rtol=1e-5)
        assert not torch.equal(rotary.inv_freq, grown)
        with pytest.raises(MethodError, match=f"change beyond {longest} tokens, and the text has 65"):
            case.model(**long)
        with pytest.raises(MethodError, match="the text has 66"):
            case.model(input_ids=torch.full((1, 4), 7), position_ids=torch.arange(62, 66)[None])
        # Room in a cache is no text.
        static = StaticCache(config=case.base.config.text_config, max_cache_len=128)
        found = case.model(**short, **{cache_argument(case.model): static}).logits
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_the_longest_text() -> None:
    assert longest_text(tiny_llava().config.text_config) is None
    assert longest_text(rope_case("dynamic").base.config.text_config) == 255
    assert longest_text(rope_case("longrope").base.config.text_config) == 64


class _Hashable(dict):  # type: ignore[type-arg]
    def __hash__(self) -> int:  # type: ignore[override]
        return hash(str(sorted(self.items())))


def test_a_refused_base_is_left_as_it_was() -> None:
    base = tiny_llava(tower="siglip")
    names = list(copy.deepcopy(base).state_dict())
    with pytest.raises(MethodError):
        get_peft_model(base, M2PTConfig(visual_tokens="official"))
    assert list(base.state_dict()) == names
    assert isinstance(base.config.vision_config, SiglipVisionConfig)
