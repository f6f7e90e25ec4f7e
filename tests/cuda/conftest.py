"""The device under test: a CUDA device if there is one, or the one that ``M2PT_TEST_DEVICE`` names.

Without either, all tests here are skipped. ``M2PT_TEST_DEVICE=cpu python -m pytest tests/cuda`` runs them on the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.tiny_base import tiny_base, write_tiny_adapter

from m2pt_cli.runtime.device import choose_device


@pytest.fixture(scope="session")
def device() -> torch.device:
    """A CUDA device, or the one that ``M2PT_TEST_DEVICE`` names."""
    said = os.environ.get("M2PT_TEST_DEVICE")
    if said is None and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device (M2PT_TEST_DEVICE=cpu runs this on the CPU)")
    return choose_device(said or "cuda")


@pytest.fixture(autouse=True)
def _memory_given_back(device: torch.device) -> Iterator[None]:
    """Every test gives the device's memory back."""
    yield
    if device.type == "cuda":
        torch.cuda.empty_cache()


@pytest.fixture(scope="session")
def tiny_adapter(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    return write_tiny_adapter(tmp_path_factory.mktemp("adapters") / "tiny", tiny_base)


def on(device: torch.device, batch: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """A batch on the device, its numbers with a fraction in ``dtype``."""
    return {name: value.to(device, dtype if value.is_floating_point() else None) for name, value in batch.items()}
