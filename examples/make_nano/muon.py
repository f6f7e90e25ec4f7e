"""Muon: momentum whose updates are orthogonalised, for the matrices of the decoder (Jordan et al., 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def orthogonalise(updates: Tensor) -> Tensor:
    """Make ``(n, rows, columns)`` with rows <= columns nearly orthonormal by Newton-Schulz iteration in bf16."""
    updates = updates.bfloat16()
    updates = updates / (updates.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(5):
        gram = updates @ updates.mT
        updates = 3.4445 * updates + (-4.7750 * gram + 2.0315 * gram @ gram) @ updates
    return updates.float()


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov momentum and orthogonalised updates; matrices of one shape are processed together."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, *, momentum: float = 0.95, weight_decay: float = 0.02
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[tuple[nn.Parameter, Tensor, bool]]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(state["momentum"], group["momentum"])
                tall = update.shape[0] > update.shape[1]
                update = update.T if tall else update
                by_shape.setdefault(tuple(update.shape), []).append((parameter, update, tall))
            for entries in by_shape.values():
                stacked = orthogonalise(torch.stack([update for _, update, _ in entries]))
                for (parameter, _, tall), update in zip(entries, stacked, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    scale = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
                    parameter.add_(update.T if tall else update, alpha=-group["lr"] * scale)
