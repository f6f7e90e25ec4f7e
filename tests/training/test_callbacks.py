from __future__ import annotations

import torch

from m2pt_cli.training.callbacks import peak_memory


def test_peak_memory_of_this_process() -> None:
    peak = peak_memory(torch.device("cpu"))
    assert peak is None or 50 * 2**20 < peak < 2**40
