"""The device, number type, threads and seed of a command."""

from __future__ import annotations

import os
import random

import torch

from m2pt_cli.errors import DeviceError, SettingsError

# Bases of fewer parameters compute on one CPU thread unless told otherwise.
_ONE_THREAD = 50_000_000
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def said_device(name: str | None) -> str | None:
    """The device the user chose: the flag's, else ``$M2PT_DEVICE``, else None."""
    return name or os.environ.get("M2PT_DEVICE") or None


def choose_device(name: str | None = None) -> torch.device:
    """The device of a command: the flag's, then ``$M2PT_DEVICE``, then the best there is (CUDA, MPS, CPU).

    Under torchrun ``cuda`` is the card of ``LOCAL_RANK``.

    Raises:
        SettingsError: no such kind of device.
        DeviceError: the device is not in this machine.
    """
    said = said_device(name)
    if said is None:
        said = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(said)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise SettingsError(f"the device {said!r} is not cpu, cuda, cuda:N or mps", "give --device or set M2PT_DEVICE")
    if device.type == "cuda":
        return _cuda(device)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("there is no MPS device in this machine", "leave out --device to take the best there is")
    return device


def _cuda(device: torch.device) -> torch.device:
    if not torch.cuda.is_available():
        why = "" if torch.version.cuda else f" (this torch, {torch.__version__}, is built without CUDA)"
        raise DeviceError(
            f"there is no CUDA device{why}", "use --device cpu; for a 7B base run on a machine with a GPU"
        )
    count = torch.cuda.device_count()
    index = device.index if device.index is not None else int(os.environ.get("LOCAL_RANK", 0))
    if index >= count:
        raise DeviceError(f"there is no device cuda:{index}: this machine has {count}", "use --device cuda")
    # float32 means float32: by default cuDNN rounds the inputs of a convolution (the patches of an image) to TF32, and
    # in NVIDIA's containers the environment has matrix products do the same.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device("cuda", index)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type of the frozen weights. ``auto``: bfloat16 on CUDA (float16 on cards before Ampere), else float32."""
    if name in _DTYPES:
        return _DTYPES[name]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16


def set_threads(count: int | None, *, parameters: int | None = None) -> None:
    """Set the CPU threads of torch.

    Args:
        count: how many; None leaves it to ``OMP_NUM_THREADS``, then to the size of the base.
        parameters: of the base. A small one gets one thread: its matrices are too small to share, and two threads on a
            busy two-core machine are ten times slower than one. Else torch takes every core.
    """
    if count is None and "OMP_NUM_THREADS" not in os.environ and (parameters or _ONE_THREAD) < _ONE_THREAD:
        count = 1
    if count is not None:
        torch.set_num_threads(count)


def set_seed(seed: int) -> None:
    """Seed every random generator: Python's, numpy's, torch's on all devices."""
    import numpy

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
