"""Handles Ctrl-C and SIGTERM: stop after the current step, or exit with the right exit code."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from m2pt_cli.errors import Interrupted


@dataclass
class StopRequest:
    """The signal that requested a stop; None if there was none."""

    signal_number: int | None = None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Record the first SIGINT or SIGTERM instead of terminating; a second one acts as usual.

    Outside the main thread, where Python handles no signals, the request stays empty.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def record(number: int, frame: FrameType | None) -> None:
        request.signal_number = number
        restore()

    for number in numbers:
        signal.signal(number, record)
    try:
        yield request
    finally:
        restore()


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised as an exception in the main thread, as Python does for Ctrl-C."""


@contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """Within the block, turn SIGTERM and Ctrl-C into `Interrupted` (exit code 143 and 130).

    Outside the main thread, where Python handles no signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt as stopped:
        word, number = how_stopped(stopped)
        raise Interrupted(word, "run the same command again to go on", signal_number=number) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def how_stopped(stop: KeyboardInterrupt) -> tuple[str, int]:
    """Return what happened, in one word, and the number of the signal."""
    return ("terminated", signal.SIGTERM) if isinstance(stop, Terminated) else ("interrupted", signal.SIGINT)
