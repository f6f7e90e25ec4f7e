"""Equality with the authors' own code: logits, loss, gradients, greedy tokens (PAPER: tolerances)."""

from __future__ import annotations

import pytest
import torch
from fixtures import golden
from fixtures.models import prompts_of

VARIANTS = ("official", "drop", "baseline")
SAMPLES = ("sample0", "sample1", "sample2", "batch")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_features_and_loss(variant: str, attention: str) -> None:
    model = golden.adapted(variant)
    model.set_attn_implementation(attention)
    expected = golden.outputs(variant)
    prompts = 0 if variant == "baseline" else golden.TEXTUAL
    for sample in SAMPLES:
        inputs = golden.inputs(sample, variant)
        with torch.no_grad():
            out = model(**inputs)
        mask = inputs["attention_mask"].bool()
        # The authors' logits begin with those of the prompts, which nothing uses.
        torch.testing.assert_close(out.logits[mask], expected[f"{sample}.logits"][:, prompts:][mask], atol=2e-4, rtol=0)
        features = expected[f"{sample}.image_features"].flatten(0, 1)
        torch.testing.assert_close(golden.joined(out.image_hidden_states), features, atol=2e-4, rtol=0)
        torch.testing.assert_close(out.loss[None], expected[f"{sample}.loss"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("variant", ["official", "drop"])
def test_gradients(variant: str) -> None:
    model = golden.adapted(variant)
    expected = golden.outputs(variant)
    model(**golden.inputs("batch", variant)).loss.backward()
    trained = {
        "projector.weight": "multi_modal_projector.modules_to_save.default.weight",
        "projector.bias": "multi_modal_projector.modules_to_save.default.bias",
        "lm_head.weight": "lm_head.modules_to_save.default.weight",
    }
    parameters = dict(model.named_parameters())
    found = {
        name: next(p for full, p in parameters.items() if full.endswith(end)).grad for name, end in trained.items()
    }
    for kind, is_tower in (("visual", True), ("textual", False)):
        for index, prompts in enumerate(prompts_of(model, is_tower)):
            found[f"{kind}_prompts.{index}"] = torch.zeros_like(prompts) if prompts.grad is None else prompts.grad
    assert len(found) == 3 + 4 + 5
    for name, gradient in found.items():
        torch.testing.assert_close(
            gradient, expected[f"batch.grad.{name}"], atol=5e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_gradients_that_are_zero_by_contract() -> None:
    official, patches = golden.adapted("official"), golden.adapted("drop")
    for variant, model in (("official", official), ("drop", patches)):
        model(**golden.inputs("batch", variant)).loss.backward()
    last = prompts_of(official, True)[-1]
    assert last.grad is not None and last.grad[0].abs().max() == 0
    assert (last.grad[1:].abs().amax(1) > 1e-4).all()
    last = prompts_of(patches, True)[-1]
    assert last.requires_grad and last.grad is None
    assert all(prompts.grad.abs().max() > 1e-4 for prompts in prompts_of(patches, True)[:-1])


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens(variant: str, use_cache: bool) -> None:
    model = golden.adapted(variant)
    expected = golden.outputs(variant)
    for sample in SAMPLES[:3]:
        inputs = golden.inputs(sample, variant)
        del inputs["labels"]
        out = model.generate(
            **inputs,
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=None,
            use_cache=use_cache,
            return_dict_in_generate=True,
            output_logits=True,
        )
        assert torch.equal(out.sequences[:, inputs["input_ids"].shape[1] :], expected[f"{sample}.generated_ids"])
        torch.testing.assert_close(
            torch.stack(out.logits, 1), expected[f"{sample}.generated_logits"], atol=2e-4, rtol=0
        )


def test_hidden_states_of_the_language_model() -> None:
    model = golden.adapted("official")
    with torch.no_grad():
        out = model(**golden.inputs("sample0", "official"), output_hidden_states=True)
    for index, hidden in enumerate(out.hidden_states):
        expected = golden.outputs("official")[f"sample0.llm_hidden.{index}"][:, golden.TEXTUAL :]
        torch.testing.assert_close(hidden, expected, atol=5e-4, rtol=0)
