"""Runs with several processes: process groups, sharding and synchronisation."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol, TypeVar

from m2pt_cli.errors import GenerationError, SettingsError
from m2pt_cli.settings import TrainSettings

Value = TypeVar("Value")


def process_count() -> int:
    """Return the number of processes of the run (``WORLD_SIZE``, as torchrun and accelerate set it)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this is the process that prints and writes (``RANK`` 0)."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def connected(settings: TrainSettings) -> Iterator[None]:
    """Initialise the process group for the block and destroy it at the end; do nothing for a single process.

    If the group were left to the interpreter's shutdown, its threads could outlive the interpreter, and a process that
    has finished its work would end with SIGABRT.
    """
    if process_count() == 1:
        yield
        return
    import torch

    if torch.distributed.is_initialized():  # the group belongs to the caller, who destroys it
        yield
        return
    _join(settings)
    try:
        yield
        torch.distributed.barrier()
    except BaseException:
        # Destroying an NCCL group would wait for the other processes, and they for this one; gloo does not wait.
        if torch.distributed.get_backend() == "gloo":
            torch.distributed.destroy_process_group()
        raise
    torch.distributed.destroy_process_group()


def _join(settings: TrainSettings) -> None:
    import torch

    from m2pt_cli.runtime.device import choose_device

    device = choose_device(settings.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.distributed.init_process_group("nccl", device_id=device)
    else:
        torch.distributed.init_process_group("gloo")


def first_then_others(work: Callable[[], Value]) -> Value:
    """Run ``work()`` in the first process, then in the others, which find the downloaded files in the cache."""
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
    """Return the first process's ``value`` in every process."""
    if process_count() == 1:
        return value
    import torch

    shared = [value]
    torch.distributed.broadcast_object_list(shared, src=0)
    return shared[0]


# All processes have loaded the same base when they join; one that has not joined by then has failed.
_JOIN_TIMEOUT = timedelta(minutes=30)
# A process may finish long before the others. One that fails closes its connections, which ends the wait.
_WAIT_TIMEOUT = timedelta(days=7)


class HasImage(Protocol):
    """An item that `Sharding.of` can assign to a process: its id, and the name of its image or None."""

    @property
    def id(self) -> str: ...

    @property
    def image_name(self) -> str | None: ...


Shared = TypeVar("Shared", bound=HasImage)


@dataclass
class Sharding:
    """The part of the work that this process does."""

    rank: int = 0
    world: int = 1
    _has_joined: bool = field(default=False, init=False)
    # None: the default group, initialised by the caller
    _group: Any = field(default=None, init=False)

    @classmethod
    def from_environment(cls) -> Sharding:
        """Return the shard that the launcher assigned to this process; without a launcher, all the work.

        Raises:
            SettingsError: RANK or WORLD_SIZE is invalid.
        """
        values = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        try:
            shard = cls(*(int(value) for value in values))
        except ValueError:
            shard = cls(0, 0)
        if not 0 <= shard.rank < shard.world:
            raise SettingsError(f"RANK={values[0]} and WORLD_SIZE={values[1]} are not valid", "start it with torchrun")
        return shard

    @property
    def is_first(self) -> bool:
        """Whether this process checks, merges, scores and prints."""
        return self.rank == 0

    def of(self, items: Sequence[Shared]) -> list[Shared]:
        """Return this process's items: images are assigned in turn, so that items of one image stay together."""
        if self.world == 1:
            return list(items)
        ranks: dict[str, int] = {}
        for item in items:
            ranks.setdefault(item.image_name or item.id, len(ranks) % self.world)
        return [item for item in items if ranks[item.image_name or item.id] == self.rank]

    def wait(self) -> None:
        """Block until every process has called this.

        Raises:
            GenerationError: another process has ended early.
        """
        if self.world == 1:
            return
        from torch import distributed

        try:
            if not distributed.is_initialized():
                distributed.init_process_group("gloo", timeout=_JOIN_TIMEOUT)
                self._has_joined = True
                self._group = distributed.new_group(backend="gloo", timeout=_WAIT_TIMEOUT)
            distributed.barrier(self._group)
        except RuntimeError as error:
            raise GenerationError(
                f"process {self.rank} of {self.world} lost the others: {str(error).splitlines()[0]}",
                "the process that ended first says why; run the same command again to go on",
            ) from None

    def leave(self) -> None:
        """Destroy the process group; call this last.

        If the group were left to the interpreter's shutdown, its threads could outlive the interpreter, and a process
        that has finished its work would end with SIGABRT.
        """
        if self._has_joined:  # a group of the caller is kept
            from torch import distributed

            distributed.destroy_process_group()
            self._has_joined = False
