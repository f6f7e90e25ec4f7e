"""Prefetching images: batches keep their order, only a few are prepared ahead, and none once the consumer stops."""

from __future__ import annotations

import threading
import time

import pytest

from m2pt_cli.generation.prefetch import prefetched
from m2pt_cli.generation.prefix_sharing import PrefixGroup


def batches_of(count: int) -> list[list[PrefixGroup]]:
    return [[PrefixGroup((number,), ((),), (number,))] for number in range(count)]


def test_batches_keep_their_order_and_are_few_steps_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2pt_cli.generation.prefetch.image_threads", lambda: 3)
    begun: list[int] = []

    def prepare(row: PrefixGroup) -> int:
        begun.append(row.members[0])
        time.sleep(0.01 * (row.members[0] % 2 == 0))
        return row.members[0] * 10

    for number, (batch, prepared) in enumerate(prefetched(batches_of(9), prepare)):
        assert (batch[0].members, prepared) == ((number,), [number * 10])
        assert len(begun) <= number + 3
    assert sorted(begun) == list(range(9))


def test_a_failure_reaches_whoever_takes_the_batch() -> None:
    def prepare(row: PrefixGroup) -> int:
        if row.members[0] == 1:
            raise ValueError("not an image")
        return 0

    taken = prefetched(batches_of(3), prepare)
    assert next(taken)[1] == [0]
    with pytest.raises(ValueError, match="not an image"):
        next(taken)


def test_whoever_stops_early_does_not_start_more_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2pt_cli.generation.prefetch.image_threads", lambda: 1)
    release, begun = threading.Event(), list[int]()

    def prepare(row: PrefixGroup) -> int:
        begun.append(row.members[0])
        if row.members[0] == 1:
            release.wait(timeout=30)
        return 0

    taken = prefetched(batches_of(6), prepare)
    next(taken)
    threading.Timer(0.2, release.set).start()
    taken.close()  # batch 2 waits for the only thread, which is busy with batch 1
    assert begun == [0, 1]


def test_whoever_stops_early_does_not_wait_for_what_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2pt_cli.generation.prefetch._MOMENT", 0.1)
    release, ended = threading.Event(), threading.Event()

    def prepare(row: PrefixGroup) -> int:
        if row.members[0] == 1:
            release.wait(timeout=30)  # a server that does not answer
            ended.set()
        return 0

    taken = prefetched(batches_of(3), prepare)
    next(taken)
    taken.close()
    assert not ended.is_set(), "close() waited for the thread that hangs"
    # The interpreter does not wait for daemon threads at exit either.
    assert all(thread.daemon for thread in threading.enumerate() if thread.name.startswith("images-"))
    release.set()
