from __future__ import annotations

import copy

import pytest
import torch
from fixtures.models import VOCABULARY, tiny_llava
from fixtures.toy_samples import collate, toy_samples
from peft import LoraConfig, get_peft_model
from torch import nn

from m2pt_cli.method import M2PTConfig
from m2pt_cli.training.loss import needs_mask, output_head, supervised_loss


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return collate(toy_samples(3))


def reference(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """transformers' own loss, over logits at every position."""
    return model(**batch).loss


def test_equals_the_full_loss_in_value_and_gradient(batch: dict[str, torch.Tensor]) -> None:
    ours, theirs = tiny_llava().requires_grad_(True), tiny_llava().requires_grad_(True)
    loss, expected = supervised_loss(ours, batch), reference(theirs, batch)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    pairs = zip(ours.named_parameters(), theirs.named_parameters(), strict=True)
    compared = [
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)
        for (_, a), (_, b) in pairs
        if b.grad is not None
    ]
    assert len(compared) > 30


def test_logits_only_at_supervised_positions(batch: dict[str, torch.Tensor]) -> None:
    model = tiny_llava()
    seen: list[tuple[int, ...]] = []
    model.lm_head.register_forward_hook(lambda head, inputs, output: seen.append(tuple(output.shape)))
    supervised_loss(model, batch)
    assert seen == [(int((batch["labels"] != -100).sum()), VOCABULARY)]
    # The model is as it was: an ordinary call gives logits everywhere.
    assert model(**batch).logits.shape[:2] == batch["input_ids"].shape


def test_first_position_is_no_target(batch: dict[str, torch.Tensor]) -> None:
    model = tiny_llava()
    labelled = copy.deepcopy(batch)
    labelled["labels"][:, 0] = 5
    torch.testing.assert_close(supervised_loss(model, labelled), supervised_loss(model, batch))


@pytest.mark.parametrize("with_head", [False, True])
def test_through_peft(batch: dict[str, torch.Tensor], with_head: bool) -> None:
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"] if with_head else None)
    model = get_peft_model(tiny_llava(), config)
    torch.testing.assert_close(supervised_loss(model, batch), reference(model, batch))
    assert output_head(model) is model.get_base_model().lm_head


def test_sum_over_micro_batches_is_the_mean_over_all_tokens() -> None:
    model = tiny_llava()
    samples = toy_samples(6, seed=4)
    samples[0] = (
        samples[0][0],
        [-100, *samples[0][0][1:]],
        samples[0][2],
    )  # many more supervised tokens than the others
    whole = supervised_loss(model, collate(samples))
    items = sum(int((collate([s])["labels"][:, 1:] != -100).sum()) for s in samples)
    parts = [supervised_loss(model, collate(samples[i : i + 2]), items) for i in (0, 2, 4)]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_loss_is_fp32_on_a_narrow_base(batch: dict[str, torch.Tensor]) -> None:
    model = tiny_llava().to(torch.bfloat16)
    batch["pixel_values"] = batch["pixel_values"].to(torch.bfloat16)
    assert supervised_loss(model, batch).dtype == torch.float32


@pytest.mark.parametrize("kind", ["bare", "m2pt", "lora"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_on_the_right_needs_no_mask(kind: str, attention: str, batch: dict[str, torch.Tensor]) -> None:
    """A causal model never looks at it; `eager` would look at the future without a mask."""
    model: nn.Module = tiny_llava(attention=attention)
    if kind == "m2pt":
        model = get_peft_model(model, M2PTConfig(num_visual_prompts=2, num_textual_prompts=3))
    if kind == "lora":
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    mask = batch["attention_mask"]
    assert not mask.all() and mask[:, 0].all(), "a batch with padding on the right"
    given: list[bool] = []
    decoder = model.get_submodule("base_model.model.model" if kind != "bare" else "model")
    handle = decoder.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs.get("attention_mask") is not None), with_kwargs=True
    )
    loss = supervised_loss(model, batch)
    assert given == [attention == "eager"] == [needs_mask(model, mask)]
    torch.testing.assert_close(loss, reference(model, batch))
    handle.remove()
    four = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    for other in (mask.flip(1), four):
        assert needs_mask(model, other)
    hole = mask.clone()
    hole[:, 1] = 0
    assert needs_mask(model, hole) and not needs_mask(model, None)
