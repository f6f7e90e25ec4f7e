"""Attention on the device: training uses the flash kernel, with the same results as with a mask."""

from __future__ import annotations

import pytest
import torch
from fixtures.cases import make_case
from fixtures.models import batch_for, fill_adapter, tiny_llava
from peft import get_peft_model
from torch.nn.attention import SDPBackend, sdpa_kernel

from m2pt_cli.method import M2PTConfig
from m2pt_cli.training.loss import supervised_loss

from .conftest import on


@pytest.mark.parametrize("decoder", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_training_step_runs_on_the_flash_kernel_alone(decoder: str, padded: bool, device: torch.device) -> None:
    """With every other kernel forbidden; a mask would be refused on CUDA. Heads of width 8, the least it takes."""
    base = tiny_llava(decoder=decoder, hidden_size=32).to(device, torch.bfloat16)
    model = get_peft_model(base, M2PTConfig(num_visual_prompts=3, num_textual_prompts=4))
    fill_adapter_on(device, model)
    batch = on(device, batch_for(base, [9, 6 if padded else 9]), torch.bfloat16)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        loss = supervised_loss(model.train(), batch)
        loss.backward()
    assert torch.isfinite(loss)
    grown = [p for name, p in model.named_parameters() if ".language_model." in name and p.requires_grad]
    assert len(grown) == 3 and all(p.grad.abs().max() > 0 for p in grown)


@pytest.mark.parametrize("padded", [False, True])
def test_both_forms_give_the_same_numbers(padded: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a mask, and with the one that padding on the right does not need."""
    case = make_case(tiny_llava(), num_visual_prompts=3, num_textual_prompts=4)
    model = case.model.to(device)
    batch = on(device, batch_for(case.base, [9, 6 if padded else 9]))
    length = batch["input_ids"].shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    visible = causal & batch["attention_mask"].bool()[:, None, None]
    found = []
    for mask in (batch["attention_mask"], visible):
        model.zero_grad()
        loss = supervised_loss(model.train(), {**batch, "attention_mask": mask})
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in case.trained().values() if p.grad is not None)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def fill_adapter_on(device: torch.device, model: torch.nn.Module) -> None:
    """`fill_adapter` draws its numbers on the CPU."""
    model.to("cpu")
    fill_adapter(model)
    model.to(device)
