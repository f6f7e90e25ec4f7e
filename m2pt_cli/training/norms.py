"""The language model's norms in one kernel, for training.

transformers writes an RMS norm as seven operations, each of which reads and writes the whole tensor, most of them in
fp32, and twice as many backward. On CUDA torch has one kernel for the forward pass and one for the backward pass, which
keep no fp32 copies. The numbers are those of the seven operations, except that a narrow type is rounded once (after the
weight) instead of twice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

# Norms of this very formula; that of Gemma, say, multiplies by 1 + weight.
RMS_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm")
# Kinds of device with such a kernel; elsewhere `rms_norm` is made of the same operations.
FUSED_DEVICES = ("cuda",)


class FusedRMSNorm(nn.Module):
    """What a norm of `RMS_NORMS` becomes, in place, with its own weight: ``x / sqrt(mean(x²) + eps) * weight``."""

    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        # Autocast would widen input and output to fp32, where the norm it stands for keeps its input's type.
        with torch.autocast(hidden_states.device.type, enabled=False):
            weight = self.weight.to(hidden_states.dtype)
            return functional.rms_norm(hidden_states, weight.shape, weight, self.variance_epsilon)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}"


def fuse_norms(model: nn.Module) -> int:
    """Turn the RMS norms of a model that lie on one of `FUSED_DEVICES` into `FusedRMSNorm`; returns how many."""
    count = 0
    for module in model.modules():
        if type(module).__name__ in RMS_NORMS and module.weight.device.type in FUSED_DEVICES:  # type: ignore[union-attr]
            module.__class__ = FusedRMSNorm
            count += 1
    return count
