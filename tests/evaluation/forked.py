"""Work in a forked child: it starts with everything imported, and may be killed at any moment."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from typing import Never


def start(work: Callable[[], object]) -> int:
    """Run ``work`` in a child process; its id. The child leaves with 0, or 1 after an exception."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return child


def finish(child: int, *, seconds: float = 120) -> int:
    """Wait for a child; its exit code, or minus the signal that ended it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"the child was not done after {seconds} s")


def kill_when(child: int, ready: Callable[[], bool]) -> bool:
    """Kill a child with SIGKILL as soon as ``ready`` is true; whether it was still running."""
    while not ready():
        done, _ = os.waitpid(child, os.WNOHANG)
        if done:
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def die() -> Never:
    """End this process as ``kill -9`` does."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")
