"""Prefetch images: open and preprocess them in threads while the model runs.

Threads, not worker processes: PIL decodes and scales without holding the GIL, so threads use all cores. Measured on two
cores (`benchmarks/image_workers.py`, `benchmarks/results/image_workers-cpu.json`), two threads prepare a JPEG in 2.1 ms
and two processes, once started, in 3.4 ms; one thread in 3.7 ms, one process in 4.1 ms. Each process must also import
torch first, which takes seconds (with CUDA in use, processes can't be forked).
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from m2pt_cli.generation.prefix_sharing import PrefixGroup

Prepared = TypeVar("Prepared")

# Batches prefetched beyond the current one: enough to hide decoding, few enough to bound memory.
_NUM_PREFETCHED = 2
# Maximum number of threads.
_MAX_THREADS = 8
# If the consumer stops early, seconds to wait for images that are being prepared.
_MOMENT = 2.0


def prefetched(
    batches: Sequence[list[PrefixGroup]], prepare: Callable[[PrefixGroup], Prepared]
) -> Generator[tuple[list[PrefixGroup], list[Prepared]], None, None]:
    """Yield each batch with the results of ``prepare`` for its groups; the next few batches are prepared in threads."""
    pool = _DaemonThreadPool(image_threads())
    try:
        waiting: deque[tuple[list[PrefixGroup], list[Future[Prepared]]]] = deque()
        for batch in batches:
            waiting.append((batch, [pool.submit(prepare, group) for group in batch]))
            if len(waiting) > _NUM_PREFETCHED:
                yield _wait_for(*waiting.popleft())
        while waiting:
            yield _wait_for(*waiting.popleft())
    finally:  # a consumer that stops early does not wait for the remaining images
        pool.shutdown()


class _DaemonThreadPool:
    """A pool of daemon threads, for which the interpreter does not wait at exit.

    It does wait for those of the standard library's pool: after Ctrl-C, a slow image server would delay the exit.
    """

    def __init__(self, count: int) -> None:
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._futures: list[Future[Any]] = []
        self._threads = [
            threading.Thread(target=self._work, name=f"images-{number}", daemon=True) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, prepare: Callable[[PrefixGroup], Prepared], group: PrefixGroup) -> Future[Prepared]:
        """Schedule ``prepare(group)``; returns the future of its result."""
        future: Future[Prepared] = Future()
        self._futures = [*(pending for pending in self._futures if not pending.done()), future]
        self._jobs.put((future, lambda: prepare(group)))
        return future

    def shutdown(self) -> None:
        """Cancel jobs that have not started, and wait up to ``_MOMENT`` seconds for the threads to end.

        That is enough to finish preprocessing, but not to wait for a slow server. A thread that runs while the
        interpreter shuts down could abort the process, so as many as possible end here.
        """
        for future in self._futures:
            future.cancel()
        for _ in self._threads:
            self._jobs.put(None)
        deadline = time.monotonic() + _MOMENT
        for thread in self._threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, make = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(make())
            except BaseException as error:  # Future.result() raises it in the consumer's thread
                future.set_exception(error)


def image_threads() -> int:
    """Number of threads: the CPU cores available to this process, at most ``_MAX_THREADS``."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MAX_THREADS)


def _wait_for(
    batch: list[PrefixGroup], futures: Sequence[Future[Prepared]]
) -> tuple[list[PrefixGroup], list[Prepared]]:
    return batch, [future.result() for future in futures]
