"""Several processes on one evaluation: each answers its share, the first one merges and scores.

Started by ``torchrun`` or ``accelerate launch``, which set RANK and WORLD_SIZE. Answers travel through the journals in
the evaluation directory, so the processes need a common file system, and no more.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from m2pt_cli.errors import GenerationError, SettingsError
from m2pt_cli.evaluation.rows import Item

# All have loaded the same base when they first meet; one that is not there by then has failed.
_MEETING = timedelta(minutes=30)
# A process may be done long before the others. One that ends early closes its connections, which ends the waiting.
_PATIENCE = timedelta(days=7)


@dataclass
class Share:
    """Which part of the work this process does."""

    rank: int = 0
    world: int = 1
    _has_joined: bool = field(default=False, init=False)
    # None: all processes of a group that another has made
    _group: Any = field(default=None, init=False)

    @classmethod
    def from_environment(cls) -> Share:
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

    def of(self, items: Sequence[Item]) -> list[Item]:
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
