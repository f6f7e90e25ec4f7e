"""Progress events of a running evaluation; the library itself prints nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Notice:
    """A message for the user: where files are written, what was resumed, or a warning about a score.

    Details are for verbose output: the device, and durations.
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
        score: mean score of the answers so far, 0 to 1; None before the first.
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
