"""Several processes: how they find each other, share work and wait for one another."""

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

    from m2pt_cli.runtime.device import choose_device

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


# All have loaded the same base when they first meet; one that is not there by then has failed.
_MEETING = timedelta(minutes=30)
# A process may be done long before the others. One that ends early closes its connections, which ends the waiting.
_PATIENCE = timedelta(days=7)


class OfImage(Protocol):
    """Something that is about an image, or about none."""

    @property
    def id(self) -> str: ...

    @property
    def image_name(self) -> str | None: ...


Shared = TypeVar("Shared", bound=OfImage)


@dataclass
class Sharding:
    """Which part of the work this process does."""

    rank: int = 0
    world: int = 1
    _has_joined: bool = field(default=False, init=False)
    # None: all processes of a group that another has made
    _group: Any = field(default=None, init=False)

    @classmethod
    def from_environment(cls) -> Sharding:
        """The share that the launcher gave to this process; all the work where there is none.

        Raises:
            SettingsError: RANK or WORLD_SIZE are not what a launcher sets.
        """
        words = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        try:
            share = cls(*(int(word) for word in words))
        except ValueError:
            share = cls(0, 0)
        if not 0 <= share.rank < share.world:
            raise SettingsError(f"RANK={words[0]} and WORLD_SIZE={words[1]} are no share", "start it with torchrun")
        return share

    @property
    def is_first(self) -> bool:
        """Whether this process checks, merges, scores and prints."""
        return self.rank == 0

    def of(self, items: Sequence[Shared]) -> list[Shared]:
        """This process's questions: whole images, dealt out in turn, so that shared prefixes stay shared."""
        if self.world == 1:
            return list(items)
        turns: dict[str, int] = {}
        for item in items:
            turns.setdefault(item.image_name or item.id, len(turns) % self.world)
        return [item for item in items if turns[item.image_name or item.id] == self.rank]

    def wait(self) -> None:
        """Go on when every process has come here.

        Raises:
            GenerationError: another process has ended before.
        """
        if self.world == 1:
            return
        from torch import distributed

        try:
            if not distributed.is_initialized():
                distributed.init_process_group("gloo", timeout=_MEETING)
                self._has_joined = True
                self._group = distributed.new_group(backend="gloo", timeout=_PATIENCE)
            distributed.barrier(self._group)
        except RuntimeError as error:
            raise GenerationError(
                f"process {self.rank} of {self.world} lost the others: {str(error).splitlines()[0]}",
                "the process that ended first says why; run the same command again to go on",
            ) from None

    def leave(self) -> None:
        """Part from the others; the last thing a process does here.

        Left to the interpreter's shutdown, the threads of a process group may outlive what they come back to, and a
        process that has done all its work ends with SIGABRT.
        """
        if self._has_joined:  # another's group stays
            from torch import distributed

            distributed.destroy_process_group()
            self._has_joined = False
