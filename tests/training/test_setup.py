"""Set-up of a run: dtypes and norms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from m2pt_cli.settings import TrainSettings
from m2pt_cli.training import norms, setup
from m2pt_cli.training.events import Event, Step
from m2pt_cli.training.norms import FusedRMSNorm
from m2pt_cli.training.run import run_training

Train = Callable[..., tuple[nn.Module, list[float]]]


@pytest.fixture
def train(tmp_path: Path, base_folder: Path, data_file: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Trains two steps and returns the model, still in the run's hands, and the losses."""
    prepared: list[setup.Prepared] = []
    original = setup.prepare

    def prepare(*arguments: Any) -> setup.Prepared:
        prepared.append(original(*arguments))
        return prepared[-1]

    monkeypatch.setattr(setup, "prepare", prepare)

    def call(watch: Callable[[nn.Module], None] = lambda model: None, **values: Any) -> tuple[nn.Module, list[float]]:
        losses: list[float] = []

        def events(event: Event) -> None:
            if isinstance(event, Step):
                losses.append(event.loss)
            if type(event).__name__ == "Started":
                watch(prepared[-1].model)

        settings = TrainSettings(
            data=(str(data_file),), base=str(base_folder), device="cpu", template="plain", max_steps=2, batch_size=4,
            accumulation=1, output_dir=tmp_path / f"run{len(prepared)}", **values,
        )  # fmt: skip
        run_training(settings, events=events)
        return prepared[-1].model, losses

    return call


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_lora_computes_in_the_bases_type_from_fp32_weights(train: Train, dtype: str) -> None:
    """Neither its inputs nor its outputs are widened, and the optimiser still sees fp32.

    A CPU has no autocast to fp16: there PEFT widens.
    """
    seen: set[tuple[str, torch.dtype]] = set()

    def watch(model: nn.Module) -> None:
        for layer in (m for m in model.modules() if isinstance(m, LoraLayer)):
            for kind in ("lora_A", "lora_B"):
                linear = getattr(layer, kind)["default"]
                linear.register_forward_hook(
                    lambda m, i, out, kind=kind: seen.update({(kind, i[0].dtype), (kind, out.dtype)})
                )

    model, losses = train(watch, method="lora", dtype=dtype)
    narrow = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    assert seen == {("lora_A", narrow), ("lora_B", narrow)}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert len(losses) == 2
    exact = losses if dtype == "float32" else train(method="lora", dtype="float32")[1]
    assert losses == pytest.approx(exact, rel=2e-2)


@pytest.mark.parametrize("method", ["m2pt", "lora", "full"])
def test_norms_are_fused_where_the_device_has_the_kernel(
    train: Train, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = {"visual_prompts": 2, "textual_prompts": 3} if method == "m2pt" else {}
    plain, expected = train(method=method, **prompts)
    monkeypatch.setattr(norms, "FUSED_DEVICES", ("cpu",))
    fused, losses = train(method=method, **prompts)
    assert not any(isinstance(m, FusedRMSNorm) for m in plain.modules())
    assert sum(isinstance(m, FusedRMSNorm) for m in fused.modules()) > 2
    assert losses == pytest.approx(expected, rel=1e-5)
