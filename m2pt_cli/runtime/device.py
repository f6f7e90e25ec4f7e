"""Device, dtype, threads and seed of a command."""

from __future__ import annotations

import os
import random

import torch

from m2pt_cli.errors import DeviceError, SettingsError

# Bases with fewer parameters use one CPU thread unless the user sets another number.
_SMALL_BASE = 50_000_000
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def said_device(name: str | None) -> str | None:
    """Return the device that the user chose: the flag's, else ``$M2PT_DEVICE``, else None."""
    return name or os.environ.get("M2PT_DEVICE") or None


def choose_device(name: str | None = None) -> torch.device:
    """Return the device of a command: the flag's, else ``$M2PT_DEVICE``, else the best available (CUDA, MPS, CPU).

    Under torchrun ``cuda`` is the GPU of ``LOCAL_RANK``. On CUDA, TF32 is turned off for the whole process.

    Raises:
        SettingsError: the name is not that of a supported device.
        DeviceError: this machine does not have the device.
    """
    chosen = said_device(name)
    if chosen is None:
        chosen = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(chosen)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise SettingsError(
            f"the device {chosen!r} is not cpu, cuda, cuda:N or mps", "give --device or set M2PT_DEVICE"
        )
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
    # float32 must not become TF32: by default cuDNN rounds the inputs of a convolution (the image patches) to TF32, and
    # NVIDIA's containers set the environment so that matrix products do the same.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device("cuda", index)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of the frozen weights. ``auto``: bfloat16 on CUDA (float16 before Ampere), else float32."""
    if name in _DTYPES:
        return _DTYPES[name]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16


def set_threads(count: int | None, *, parameters: int | None = None) -> None:
    """Set the number of CPU threads of torch.

    Args:
        count: number of threads; None uses ``OMP_NUM_THREADS`` if set, else depends on the size of the base.
        parameters: number of parameters of the base. A small base gets one thread: its matrices are too small to split,
            and two threads on a busy two-core machine are ten times slower than one. Otherwise torch uses every core.
    """
    if count is None and "OMP_NUM_THREADS" not in os.environ and (parameters or _SMALL_BASE) < _SMALL_BASE:
        count = 1
    if count is not None:
        torch.set_num_threads(count)


def set_seed(seed: int) -> None:
    """Seed the random generators of Python, numpy and torch (on all devices)."""
    import numpy

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
