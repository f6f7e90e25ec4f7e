"""None"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import pytest
import torch
from fixtures import forked

from m2pt_cli.runtime.distributed import agreed, connected, first_then_others
from m2pt_cli.settings import TrainSettings

SETTINGS = TrainSettings(data=("demo",), device="cpu")


def in_two(work: Callable[[int], None]) -> list[int]:
    """The exit codes of two processes that do ``work(rank)`` together."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def one(rank: int) -> None:
        os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        work(rank)

    return [forked.finish(child) for child in [forked.start(lambda rank=rank: one(rank)) for rank in range(2)]]


def test_alone_there_is_nobody_to_join() -> None:
    with connected(SETTINGS):
        assert not torch.distributed.is_initialized()
        assert agreed(3) == 3 and first_then_others(lambda: 4) == 4


def test_two_agree_and_part() -> None:
    def work(rank: int) -> None:
        with connected(SETTINGS):
            assert torch.distributed.is_initialized()
            assert agreed(rank) == 0
        # What is left to the interpreter's shutdown ends in SIGABRT now and then.
        assert not torch.distributed.is_initialized()

    assert in_two(work) == [0, 0]


def test_who_fails_parts_too() -> None:
    def work(rank: int) -> None:
        with pytest.raises(KeyError), connected(SETTINGS):
            raise KeyError(rank)
        assert not torch.distributed.is_initialized()

    assert in_two(work) == [0, 0]


def test_a_group_of_the_caller_stays() -> None:
    def work(rank: int) -> None:
        torch.distributed.init_process_group("gloo")
        with connected(SETTINGS):
            assert agreed(rank) == 0
        assert torch.distributed.is_initialized()

    assert in_two(work) == [0, 0]
