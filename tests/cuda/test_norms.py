"""Fused norms on the device: the kernel is used, and its results equal transformers' operations."""

from __future__ import annotations

import copy

import pytest
import torch
from fixtures.models import tiny_llava
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from m2pt_cli.training import norms
from m2pt_cli.training.norms import fuse_norms


class Watched(TorchDispatchMode):
    """Collects the names of the operations that are run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_value_and_gradient(dtype: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "FUSED_DEVICES", (device.type,))
    plain = tiny_llava().model.language_model.layers[0].input_layernorm.to(device, dtype)
    nn.init.uniform_(plain.weight, 0.5, 1.5)
    fused = copy.deepcopy(plain)
    assert fuse_norms(fused) == 1
    draw = torch.Generator().manual_seed(0)
    values, wanted = (3 * torch.randn(2, 5, 7, plain.weight.shape[0], generator=draw)).to(device, dtype)
    found = []
    for norm in (fused, plain.double()):
        x = values.detach().to(norm.weight.dtype).requires_grad_(True)
        with Watched() as watched:
            out = norm(x)
        out.backward(wanted.to(out.dtype))
        found.append((out.detach().double(), x.grad.double()))
        if norm is fused and device.type == "cuda":
            assert "_fused_rms_norm" in watched.names
    eps = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(found[0], found[1], rtol=eps, atol=4 * eps)
