"""Fused RMS norms of the language model, for training.

transformers implements an RMS norm as seven operations, with twice as many in the backward pass. Each reads and writes
the whole tensor, most of them in fp32. On CUDA torch has one kernel for the forward and one for the backward pass;
neither keeps an fp32 copy. The results are the same, except that half precision is rounded once (after the weight)
instead of twice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

# Classes with exactly this formula; Gemma's, for example, multiplies by 1 + weight.
RMS_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")
# Device types with a fused kernel; on others `rms_norm` runs the separate operations.
FUSED_DEVICES = ("cuda",)


class FusedRMSNorm(nn.Module):
    """An RMS norm, ``x / sqrt(mean(x²) + eps) * weight``, in one kernel; `fuse_norms` converts modules to it."""

    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        # Autocast would cast input and output to fp32; the norm of transformers keeps the dtype of its input.
        with torch.autocast(hidden_states.device.type, enabled=False):
            weight = self.weight.to(hidden_states.dtype)
            return functional.rms_norm(hidden_states, weight.shape, weight, self.variance_epsilon)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}"


def fuse_norms(model: nn.Module) -> int:
    """Convert the RMS norms of a model on `FUSED_DEVICES` to `FusedRMSNorm` in place; return their number."""
    count = 0
    for module in model.modules():
        if type(module).__name__ in RMS_NORMS and module.weight.device.type in FUSED_DEVICES:  # type: ignore[union-attr]
            module.__class__ = FusedRMSNorm
            count += 1
    return count
