"""Images opened and prepared ahead of the model, by threads.

Threads, not worker processes: PIL decodes and scales without the interpreter's lock, so threads use all cores. Measured
side by side on two cores (`benchmarks/image_workers.py`, `benchmarks/results/image_workers-cpu.json`) two threads
prepare a JPEG in 2.1 ms and two processes, once started, in 3.4 ms; one in 3.7 and 4.1 ms. Each process must also
import torch first, which takes seconds (beside CUDA there is no forking).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from m2pt_cli.answering.plan import Row

Prepared = TypeVar("Prepared")

# Prepared image batches that wait for the model: enough to hide decoding, few enough to bound memory.
_AHEAD = 2
# Threads at most.
_MOST_THREADS = 8


def prepared_ahead(
    batches: Sequence[list[Row]], prepare: Callable[[Row], Prepared]
) -> Generator[tuple[list[Row], list[Prepared]], None, None]:
    """Batches in order, with what ``prepare`` makes of their rows, a few batches ahead of whoever takes them."""
    with ThreadPoolExecutor(max_workers=image_threads(), thread_name_prefix="images") as pool:
        try:
            waiting: deque[tuple[list[Row], list[Future[Prepared]]]] = deque()
            for batch in batches:
                waiting.append((batch, [pool.submit(prepare, row) for row in batch]))
                if len(waiting) > _AHEAD:
                    yield _finished(*waiting.popleft())
            while waiting:
                yield _finished(*waiting.popleft())
        finally:  # whoever stops early does not wait for images that nobody will look at
            pool.shutdown(wait=False, cancel_futures=True)


def image_threads() -> int:
    """As many as this process has cores, within bounds."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_THREADS)


def _finished(batch: list[Row], futures: Sequence[Future[Prepared]]) -> tuple[list[Row], list[Prepared]]:
    return batch, [future.result() for future in futures]
