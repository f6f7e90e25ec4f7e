"""Training on the device: the loss falls in bf16, a stopped run resumes, and out of memory is a one-line error."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.toy_samples import write_data
from safetensors.torch import load_file

from m2pt_cli.errors import DeviceError, Interrupted
from m2pt_cli.records import TrainResult
from m2pt_cli.settings import TrainSettings
from m2pt_cli.training import trainer
from m2pt_cli.training.events import Event, Started, Step
from m2pt_cli.training.run import run_training

Run = Callable[..., TrainResult]


@pytest.fixture
def run(device: torch.device, tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run_training` on the device, by default on the tiny base and 12 samples: six steps of two."""
    data = write_data(tmp_path / "data")
    monkeypatch.chdir(tmp_path)

    def call(*, events: Callable[[Event], None] = lambda event: None, **values: Any) -> TrainResult:
        defaults: dict[str, Any] = {
            "data": (str(data),), "base": str(tiny_base), "device": str(device), "template": "plain",
            "batch_size": 2, "accumulation": 1, "epochs": 1, "visual_prompts": 2, "textual_prompts": 3,
            "gradient_checkpointing": False, "output_dir": tmp_path / "run",
        }  # fmt: skip
        return run_training(TrainSettings(**(defaults | values)), events=events)

    return call


@pytest.mark.parametrize("method", ["m2pt", "lora", "full"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_bf16_reduces_the_loss(method: str, checkpointing: bool, run: Run) -> None:
    """The embedded base on the demo data, 25 steps; the least that any of them did on a CPU was from 3.9 to 1.6."""
    losses: list[float] = []
    options: dict[str, Any] = {} if method == "m2pt" else {"visual_prompts": None, "textual_prompts": None}
    if method == "m2pt":
        options = {"visual_prompts": 6, "textual_prompts": 8}
    run(
        events=lambda event: losses.append(event.loss) if isinstance(event, Step) else None,
        base="nano", data=("demo",), limit=200, epochs=None, max_steps=25, batch_size=16, method=method,
        dtype="bfloat16", gradient_checkpointing=checkpointing, template=None, **options,
    )  # fmt: skip
    assert len(losses) == 25
    assert sum(losses[-5:]) / 5 < 0.7 * losses[0], losses


def test_a_stopped_run_goes_on(run: Run, tmp_path: Path, device: torch.device) -> None:
    """Weights and losses of a run stopped after three of six steps and resumed are those of a run in one piece."""
    run(output_dir=tmp_path / "whole", gradient_checkpointing=True)

    def stop(event: Event) -> None:
        if isinstance(event, Step) and event.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="step 3 of 6"):
        run(output_dir=tmp_path / "parts", gradient_checkpointing=True, events=stop)
    steps: list[int] = []
    run(
        output_dir=tmp_path / "parts", gradient_checkpointing=True, resume=True,
        events=lambda event: steps.append(event.step) if isinstance(event, Step) else None,
    )  # fmt: skip
    assert steps == [4, 5, 6]
    # Sums of a few kernels come in another order on CUDA; Adam makes of that a part of a step of 7e-4.
    exact = {"atol": 0.0, "rtol": 0.0} if device.type == "cpu" else {"atol": 1e-4, "rtol": 1e-3}
    whole, parts = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "parts"))
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, msg=lambda m, n=name: f"{n}: {m}", **exact)
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    assert [row["loss"] for row in rows[0]] == pytest.approx([row["loss"] for row in rows[1]], rel=1e-3)


def test_full_memory_is_one_line(run: Run, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    def events(event: Event) -> None:
        if not isinstance(event, Started):
            return
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(1e-9, device)
        else:
            monkeypatch.setattr(trainer, "supervised_loss", fail)

    def fail(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...\nmore")

    try:
        with pytest.raises(DeviceError) as caught:
            # Large enough not to fit into what is left free of the blocks that the weights lie in.
            run(events=events, base="nano", data=("demo",), limit=256, epochs=None, max_steps=2, batch_size=128,
                template=None, visual_prompts=6, textual_prompts=8)  # fmt: skip
    finally:
        if device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0, device)
    assert caught.value.message.startswith("out of memory while training: CUDA out of memory")
    assert "\n" not in caught.value.message
    assert "--batch-size 64 --accumulation 2" in (caught.value.hint or "")
