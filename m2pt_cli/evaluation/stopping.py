"""SIGTERM while an evaluation runs: it ends as by Ctrl-C, with every answer kept and the next step said."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from m2pt_cli.errors import Interrupted


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where the main thread stands, as Python does for Ctrl-C."""


@contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """Within it SIGTERM raises `Terminated`; it, or Ctrl-C, leaves as Interrupted (exit code 143, 130).

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
    """What happened in a word, and the number of the signal."""
    return ("terminated", signal.SIGTERM) if isinstance(stop, Terminated) else ("interrupted", signal.SIGINT)
