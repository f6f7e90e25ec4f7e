from __future__ import annotations

import dataclasses
from typing import Any

from m2pt_cli.bases.catalog import entry_of
from m2pt_cli.settings import TrainSettings
from m2pt_cli.training.memory import MemoryEstimate, estimate_memory
from m2pt_cli.training.plan import resolve

ENTRY = entry_of("llava-1.5-7b")


def estimate(
    *,
    tokens: int = 16 * 640,
    trainable: int = 6_000_640,
    dtype: str = "bfloat16",
    fused_norms: bool = False,
    **values: Any,
) -> MemoryEstimate:
    settings = resolve(TrainSettings(data=("demo",), **values), ENTRY)
    return estimate_memory(
        settings, ENTRY.geometry, dtype=dtype, trainable=trainable, tokens=tokens, supervised=160, images=16,
        fused_norms=fused_norms,
    )  # fmt: skip


def test_parts_add_up() -> None:
    memory = estimate()
    assert memory.total == memory.weights + memory.trained + memory.activations
    assert memory.weights == 2 * ENTRY.geometry.total_parameters
    assert memory.trained == 16 * 6_000_640
    assert estimate(dtype="float32").weights == 2 * memory.weights


def test_a_7b_run_fits_one_large_gpu_and_full_tuning_does_not() -> None:
    assert 15e9 < estimate().total < 40e9
    assert estimate(method="full", trainable=6_759_000_000).total > 100e9


def test_what_saves_memory() -> None:
    usual = estimate(gradient_checkpointing=False).activations
    assert estimate(gradient_checkpointing=True).activations < 0.25 * usual
    assert estimate(gradient_checkpointing=False, tokens=8 * 640).activations < 0.7 * usual
    assert estimate(gradient_checkpointing=False, method="textual").activations < usual
    fused = estimate(gradient_checkpointing=False, fused_norms=True).activations
    assert usual - fused == 16 * 640 * 32 * 4096 * 2 * (4 - 2), "two inputs a layer in bf16 and not in fp32"
    assert dataclasses.asdict(estimate())["dtype"] == "bfloat16"
