"""What a running evaluation reports; the library prints nothing itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Notice:
    """A line for the person: where files go, what was resumed, what is odd about a score.

    A detail is for those who ask for more: what it runs on, and how long things took.
    """

    text: str
    is_warning: bool = False
    is_detail: bool = False


@dataclass(frozen=True)
class Progress:
    """The state of one benchmark of one run: sent at its start and after every answer.

    Attributes:
        run: the adapter's name, or the base's.
        bench: the benchmark, with its pass (``demo``, ``demo-shuffled``).
        done: questions with an answer or a failure, ``resumed`` of them from an earlier start.
        failed: questions without an answer.
        score: mean mark of the answers so far, 0 to 1; None before the first.
    """

    run: str
    bench: str
    done: int
    total: int
    resumed: int
    failed: int
    score: float | None


class Events(Protocol):
    """Takes each event as it happens."""

    def __call__(self, event: Notice | Progress, /) -> None: ...


def ignore(event: Notice | Progress, /) -> None:
    """Drop an event."""
