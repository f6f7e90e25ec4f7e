"""Fused norms give the same numbers. On a CPU they run torch's formula; `tests/cuda` tests the kernel."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from fixtures.cases import make_case
from fixtures.models import batch_for, tiny_llava
from torch import nn

from m2pt_cli.training import norms
from m2pt_cli.training.loss import supervised_loss
from m2pt_cli.training.norms import FusedRMSNorm, fuse_norms


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms on the CPU are replaced, too."""
    monkeypatch.setattr(norms, "FUSED_DEVICES", ("cpu",))


def all_norms(model: nn.Module) -> list[Any]:
    found = [m for m in model.modules() if type(m).__name__ in norms.RMS_NORMS]
    assert len(found) > 2
    for norm in found:
        nn.init.uniform_(norm.weight, 0.5, 1.5)  # a weight of ones could be left out and nobody would notice
    return found


@pytest.mark.parametrize("decoder", ["llama", "mistral", "qwen2"])
def test_loss_and_gradients_are_the_same(decoder: str, on_cpu: None) -> None:
    base = tiny_llava(decoder=decoder)
    expected_count = len(all_norms(base))
    case = make_case(base, num_visual_prompts=3, num_textual_prompts=4)
    batch = batch_for(base, [9, 6])
    found = []
    for step in range(2):
        case.model.zero_grad()
        supervised_loss(case.model.train(), batch).backward()
        found.append({name: p.grad.clone() for name, p in case.trained().items() if p.grad is not None})
        if step == 0:
            assert fuse_norms(case.model) == expected_count
    assert any(g.abs().max() > 0 for g in found[0].values())
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("autocast", [False, True])
def test_one_norm(dtype: torch.dtype, autocast: bool, on_cpu: None) -> None:
    """In the input's type, under autocast as well; in a narrow one within two roundings."""
    norm = copy.deepcopy(all_norms(tiny_llava())[0]).to(dtype)
    plain = copy.deepcopy(norm)
    assert fuse_norms(norm) == 1 and isinstance(norm, FusedRMSNorm) and norm.weight is norm._parameters["weight"]
    hidden = 3 * torch.randn(5, 7, norm.weight.shape[0], dtype=dtype, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours, theirs = norm(hidden), plain(hidden)
    assert ours.dtype == theirs.dtype == dtype
    torch.testing.assert_close(ours, theirs, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    assert "eps=" in repr(norm)


def test_another_formula_and_another_device_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llava()
    assert fuse_norms(model) == 0, "on a CPU there is nothing to gain"
    monkeypatch.setattr(norms, "FUSED_DEVICES", ("cpu",))

    class GemmaRMSNorm(nn.Module):
        weight = nn.Parameter(torch.zeros(4))

    assert fuse_norms(nn.Sequential(GemmaRMSNorm(), nn.LayerNorm(4))) == 0
