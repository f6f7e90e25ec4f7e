"""Several processes on one run (torchrun, accelerate launch): who goes first, and what all must agree on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from m2pt_cli.settings import TrainSettings

Value = TypeVar("Value")


def process_count() -> int:
    """How many processes train together (``WORLD_SIZE`` as torchrun and accelerate set it)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this process is the one that prints and writes (``RANK``)."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def connected(settings: TrainSettings) -> Iterator[None]:
    """Joined to the other processes, and parted from them at the end; nothing to do when there are none.

    Left to the interpreter's shutdown, the threads of a process group may still run when there is no interpreter for
    them to come back to, and a process that has done all its work ends with SIGABRT.
    """
    if process_count() == 1:
        yield
        return
    import torch

    if torch.distributed.is_initialized():  # the caller's own group: it stays
        yield
        return
    _join(settings)
    try:
        yield
        torch.distributed.barrier()
    except BaseException:
        # NCCL would wait for what the other processes still owe, and they for this one; gloo lets go.
        if torch.distributed.get_backend() == "gloo":
            torch.distributed.destroy_process_group()
        raise
    torch.distributed.destroy_process_group()


def _join(settings: TrainSettings) -> None:
    import torch

    from m2pt_cli.bases.device import choose_device

    device = choose_device(settings.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.distributed.init_process_group("nccl", device_id=device)
    else:
        torch.distributed.init_process_group("gloo")


def first_then_others(work: Callable[[], Value]) -> Value:
    """``work()`` in the first process, then in the others, which find downloaded files in place."""
    if process_count() == 1:
        return work()
    import torch

    if is_first_process():
        result = work()
        torch.distributed.barrier()
        return result
    torch.distributed.barrier()
    return work()


def agreed(value: Value) -> Value:
    """The first process's ``value``, in every process."""
    if process_count() == 1:
        return value
    import torch

    shared = [value]
    torch.distributed.broadcast_object_list(shared, src=0)
    return shared[0]
