"""None"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from m2pt_cli.errors import InputError, SettingsError
from m2pt_cli.models.catalog import entry_of
from m2pt_cli.settings import TrainSettings
from m2pt_cli.training.estimate import DryRun, MemoryEstimate, dry_run, estimate_memory, planned_memory
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


def plan(base: Path, data: Path, **values: object) -> DryRun:
    options = {"data": (str(data),), "base": str(base), "device": "cpu", "template": "plain", "batch_size": 2}
    return dry_run(TrainSettings(**(options | values)))  # type: ignore[arg-type]


def test_one_sample_with_its_supervised_span(base_folder: Path, data_file: Path) -> None:
    found = plan(base_folder, data_file)
    assert (found.sample_id, [Path(name).name for name in found.sample_images]) == ("s0", ["0.png"])
    kinds = [(part.is_image, part.is_supervised) for part in found.sample]
    assert kinds == [(False, False), (True, False), (False, False), (False, True)]
    assert len(found.sample[1].token_ids) == 9
    assert found.sample[-1].text.split() in (["yes", "</s>"], ["no", "</s>"])
    assert found.supervised == 24 and found.steps == 9  # 12 samples in batches of 2 x 2, three epochs


def test_official_tokens_are_counted_in(base_folder: Path, data_file: Path) -> None:
    found = plan(base_folder, data_file, visual_tokens="official", visual_prompts=3)
    assert len(found.sample[1].token_ids) == 12


def test_memory_follows_the_longest_sample(base_folder: Path, data_file: Path) -> None:
    short, long = plan(base_folder, data_file, limit=1), plan(base_folder, data_file)
    assert planned_memory(short, trainable=10).activations <= planned_memory(long, trainable=10).activations


def test_refuses_what_a_run_would_refuse(base_folder: Path, data_file: Path) -> None:
    with pytest.raises(SettingsError, match="not empty"):
        plan(base_folder, data_file, output_dir=data_file.parent)
    with pytest.raises(InputError, match="12 faulty samples"):
        plan(base_folder, data_file, max_length=8)
