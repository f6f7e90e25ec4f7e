"""A stage of the pre-training: a number of steps that can be interrupted, resumed and repeated exactly.

Every step draws its batch from a generator seeded by (seed, stage, step). A resumed stage therefore needs only the
weights, the optimisers' state and the step number, and ends with the same weights as an uninterrupted one.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

LossAt = Callable[[int, random.Random], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True)
class Run:
    """The working folder and the seed of a pre-training."""

    folder: Path
    seed: int

    def log(self, stage: str, **values: object) -> None:
        """Append a line to ``log.jsonl`` and print it."""
        line = json.dumps({"stage": stage, **values})
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def rng(self, stage: str, step: int) -> random.Random:
        """Return the random generator of one step."""
        return random.Random(f"{self.seed}/{stage}/{step}")


def _rate(step: int, steps: int, warmup: int) -> float:
    """Learning rate factor: warm-up, constant for the first 60 %, then linear to 3 %."""
    done = step / steps
    return min(1.0, (step + 1) / warmup) * (1.0 if done < 0.6 else max(0.03, 1 - (done - 0.6) / 0.4))


def _save(path: Path, content: object) -> None:
    torch.save(content, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def train_stage(
    run: Run,
    name: str,
    module: nn.Module,
    optimisers: Sequence[torch.optim.Optimizer],
    loss_at: LossAt,
    *,
    steps: int,
    warmup: int = 60,
    report: Callable[[], dict[str, object]] | None = None,
    save_every: int = 200,
) -> None:
    """Train ``module`` for ``steps``, or load its weights if this stage is already finished.

    Args:
        loss_at: returns the loss of a step and figures for the log, given the step and its generator.
        report: returns scores, measured at the end.
    """
    finished, unfinished = run.folder / f"{name}.pt", run.folder / f"{name}.partial.pt"
    if finished.exists():
        module.load_state_dict(torch.load(finished, weights_only=True))
        return
    first, seconds = 0, 0.0
    if unfinished.exists():
        state = torch.load(unfinished, weights_only=True)
        module.load_state_dict(state["module"])
        for optimiser, values in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(values)
        first, seconds = state["step"], state["seconds"]
    else:
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["peak"] = group["lr"]
    parameters = [p for optimiser in optimisers for group in optimiser.param_groups for p in group["params"]]
    started, figures = time.process_time() - seconds, {}
    module.train()
    for step in range(first, steps):
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * _rate(step, steps, warmup)
        loss, values = loss_at(step, run.rng(name, step))
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimiser in optimisers:
            optimiser.step()
        for key, value in {"loss": loss.item(), **values}.items():
            figures.setdefault(key, []).append(value)
        if (step + 1) % 50 == 0 or step + 1 == steps:
            means = {key: round(sum(values[-50:]) / len(values[-50:]), 3) for key, values in figures.items()}
            run.log(name, step=step + 1, cpu_seconds=round(time.process_time() - started), **means)
            figures = {}
        if (step + 1) % save_every == 0:
            optimiser_states = [optimiser.state_dict() for optimiser in optimisers]
            content = {"module": module.state_dict(), "optimisers": optimiser_states, "step": step + 1}
            _save(unfinished, {**content, "seconds": time.process_time() - started})
    module.eval()
    _save(finished, module.state_dict())
    unfinished.unlink(missing_ok=True)
    if report is not None:
        run.log(name, scores=report(), cpu_seconds=round(time.process_time() - started))
