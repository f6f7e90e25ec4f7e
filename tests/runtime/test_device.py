"""Devices, types, threads and seeds."""

from __future__ import annotations

import random

import numpy
import pytest
import torch

from m2pt_cli.errors import DeviceError, SettingsError
from m2pt_cli.runtime.device import choose_device, choose_dtype, set_seed, set_threads


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("M2PT_DEVICE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("M2PT_DEVICE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_without_a_gpu(no_gpu: None) -> None:
    assert choose_device() == torch.device("cpu")
    for name in ("cuda", "cuda:1"):
        with pytest.raises(DeviceError, match="no CUDA device") as caught:
            choose_device(name)
        assert "--device cpu" in (caught.value.hint or "")
    with pytest.raises(DeviceError, match="MPS"):
        choose_device("mps")


def test_with_gpus(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device() == torch.device("cuda", 0)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(DeviceError, match="cuda:2"):
        choose_device("cuda:2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device() == torch.device("cuda", 1)


def test_float32_is_float32_on_a_gpu(two_gpus: None) -> None:
    """Whatever the environment asks for, as NVIDIA's containers do with TORCH_ALLOW_TF32_CUBLAS_OVERRIDE."""
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = True
        choose_device("cuda")
        assert [backend.allow_tf32 for backend in backends] == [False, False]
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


def test_the_environment_comes_after_the_flag(no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M2PT_DEVICE", "cuda")
    with pytest.raises(DeviceError):
        choose_device()
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("M2PT_DEVICE", "gpu")
    with pytest.raises(SettingsError, match="'gpu'"):
        choose_device()


def test_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    assert choose_dtype("auto", cpu) == torch.float32
    assert choose_dtype("bfloat16", cpu) == torch.bfloat16
    for capability, expected in (((9, 0), torch.bfloat16), ((7, 5), torch.float16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert choose_dtype("auto", cuda) == expected


def test_seed_and_threads() -> None:
    draws = []
    for _ in range(2):
        set_seed(7)
        draws.append((random.random(), numpy.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]
    before = torch.get_num_threads()
    set_threads(None)
    assert torch.get_num_threads() == before
    set_threads(1)
    assert torch.get_num_threads() == 1


def test_a_small_base_computes_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", said.append)
    monkeypatch.delenv("OMP_NUM_THREADS")
    set_threads(None, parameters=2_000_000)
    set_threads(3, parameters=2_000_000)
    set_threads(None, parameters=7_000_000_000)
    set_threads(None)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    set_threads(None, parameters=2_000_000)
    assert said == [1, 3]
