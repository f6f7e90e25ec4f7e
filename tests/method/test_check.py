"""The check that prompts take effect: it passes for every base and fails for every way to lose prompts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fixtures.cases import Case, make_case
from fixtures.models import tiny_llava, tiny_llava_next
from peft import LoraConfig, get_peft_model

from m2pt_cli.errors import AdapterError
from m2pt_cli.method import check, check_prompts
from m2pt_cli.method.attention import CALLS, PromptedCall

SMALL = {"num_visual_prompts": 3, "num_textual_prompts": 2}


@pytest.fixture
def case() -> Case:
    return make_case(tiny_llava(), **SMALL)


@pytest.mark.parametrize("options", [{}, {"tower": "siglip"}, {"attention": "eager"}, {"dtype": torch.bfloat16}])
def test_prompts_that_act(options: dict[str, Any]) -> None:
    check_prompts(make_case(tiny_llava(**options), **SMALL).model, "mine")


def test_other_bases_and_adapters() -> None:
    check_prompts(make_case(tiny_llava_next(), **SMALL).model, "mine")
    check_prompts(make_case(tiny_llava(), **SMALL, visual_tokens="official").model, "mine")
    for one in ({"num_visual_prompts": 0}, {"num_textual_prompts": 0}, {"init": "zeros"}):
        check_prompts(make_case(tiny_llava(), **{**SMALL, **one}).model, "mine")
    lora = get_peft_model(tiny_llava(), LoraConfig(target_modules=["q_proj"]))
    check_prompts(lora, "mine")


@pytest.mark.parametrize(
    ("side", "layers"), [("textual", "language_model.layers"), ("visual", "vision_tower.encoder.layers")]
)
def test_prompts_without_effect(case: Case, side: str, layers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attentions = [layer.self_attn for layer in case.model.base_model.model.model.get_submodule(layers)]
    # As if the function were another's, which knows of no prompts.
    monkeypatch.setattr(PromptedCall, "was_called", property(lambda _: True, lambda *_: None), raising=False)
    for attention in attentions:
        attention.base_layer.__dict__.pop(CALLS)
    with pytest.raises(AdapterError, match=f"the {side} prompts of mine have no effect on this base"):
        check_prompts(case.model, "mine")
    assert not any(attention.is_muted for attention in attentions)
    monkeypatch.setenv("M2PT_SKIP_CHECK", "1")
    check_prompts(case.model, "mine")


def test_prompts_that_a_cache_loses(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = check._logits

    def lost(llava: Any, *, cached: bool = False) -> torch.Tensor:
        if not cached:
            return logits(llava)
        with case.model.disable_adapter():
            return logits(llava, cached=True)

    monkeypatch.setattr(check, "_logits", lost)
    with pytest.raises(AdapterError, match="act otherwise with a cache"):
        check_prompts(case.model, "mine")
