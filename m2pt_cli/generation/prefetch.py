"""Images opened and prepared ahead of the model, by threads.

Threads, not worker processes: PIL decodes and scales without the interpreter's lock, so threads use all cores. Measured
side by side on two cores (`benchmarks/image_workers.py`, `benchmarks/results/image_workers-cpu.json`) two threads
prepare a JPEG in 2.1 ms and two processes, once started, in 3.4 ms; one in 3.7 and 4.1 ms. Each process must also
import torch first, which takes seconds (beside CUDA there is no forking).
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

# Prepared image batches that wait for the model: enough to hide decoding, few enough to bound memory.
_AHEAD = 2
# Threads at most.
_MOST_THREADS = 8
# Seconds that an early end waits for images being prepared.
_MOMENT = 2.0


def prefetched(
    batches: Sequence[list[PrefixGroup]], prepare: Callable[[PrefixGroup], Prepared]
) -> Generator[tuple[list[PrefixGroup], list[Prepared]], None, None]:
    """Batches in order, with what ``prepare`` makes of their rows, a few batches ahead of whoever takes them."""
    pool = _Threads(image_threads())
    try:
        waiting: deque[tuple[list[PrefixGroup], list[Future[Prepared]]]] = deque()
        for batch in batches:
            waiting.append((batch, [pool.submit(prepare, row) for row in batch]))
            if len(waiting) > _AHEAD:
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())
    finally:  # whoever stops early does not wait for images that nobody will look at
        pool.leave()


class _Threads:
    """Threads that work off a queue, and that nobody need wait for.

    The standard library's pool is waited for when the interpreter ends: after Ctrl-C a server that answers slowly
    would hold up the end of the program.
    """

    def __init__(self, count: int) -> None:
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._futures: list[Future[Any]] = []
        self._threads = [
            threading.Thread(target=self._work, name=f"images-{number}", daemon=True) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, prepare: Callable[[PrefixGroup], Prepared], row: PrefixGroup) -> Future[Prepared]:
        """The result of ``prepare(row)``, in time."""
        future: Future[Prepared] = Future()
        self._futures = [*(one for one in self._futures if not one.done()), future]
        self._jobs.put((future, lambda: prepare(row)))
        return future

    def leave(self) -> None:
        """Drop what has not begun, and give what has a moment: pixels are prepared by then, a slow server is not.

        A thread that ends while the interpreter does would abort the process, so those that can end have ended here.
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
            except BaseException as error:  # whoever asked for it raises it
                future.set_exception(error)


def image_threads() -> int:
    """As many as this process has cores, within bounds."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_THREADS)


def _finished(
    batch: list[PrefixGroup], futures: Sequence[Future[Prepared]]
) -> tuple[list[PrefixGroup], list[Prepared]]:
    return batch, [future.result() for future in futures]
