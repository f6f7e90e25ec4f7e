"""Events that a running evaluation reports; the library itself prints nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Notice:
    """A message to the user: where files are written, what is downloaded, what limits a score."""

    text: str
    is_warning: bool = False


@dataclass(frozen=True)
class Progress:
    """The progress of one benchmark of one run, sent at its start and after every answer.

    Attributes:
        run: name of the adapter, or of the base.
        bench: the benchmark; with the suffix ``-shuffled`` in the blind baseline.
        done: questions that were answered or failed; ``resumed`` of them by an earlier start.
        total: all questions of this process.
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
    """A callback that receives each event as it happens."""

    def __call__(self, event: Notice | Progress, /) -> None: ...


def ignore(event: Notice | Progress, /) -> None:
    """Do nothing with an event."""
