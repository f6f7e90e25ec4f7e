"""The running evaluation on stderr: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from m2pt_cli.cli.output import Output
from m2pt_cli.evaluation.events import Notice, Progress

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

# Seconds between plain lines, and between redrawings of the live table.
_LINE_EVERY = 20.0
_DRAW_EVERY = 0.25
# On a terminal narrower than this, columns that a person can spare make room for the others.
_NARROW = 72
_SPARED = ("questions/s", "failed")


class EvalProgress:
    """Shows the events of `run_evaluation`; use it as a context manager around the run."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._live: Live | None = None
        self._lines: dict[tuple[str, str], _Line] = {}
        self._last = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __call__(self, event: Notice | Progress, /) -> None:
        if isinstance(event, Notice):
            self._stop()
            (self._output.warn if event.is_warning else self._output.status)(event.text)
            return
        key = (event.run, event.bench)
        if key not in self._lines and event.resumed and self._output.live:
            self._stop()  # the moving table does not stay; where an earlier start is gone on with, does
            kept = f"{event.resumed:,} of {event.total:,} answers are from an earlier start"
            self._output.status(f"{event.run} on {event.bench}: {kept}")
        line = self._lines.setdefault(key, _Line(event))
        line.event = event
        ended = event.done == event.total
        now = time.monotonic()
        if self._output.live:
            if now - self._last >= _DRAW_EVERY or ended:
                self._last = now
                self._draw()
        elif ended or now - self._last >= _LINE_EVERY:
            self._last = now
            self._output.status(line.text())

    def _draw(self) -> None:
        from rich.console import Console
        from rich.live import Live

        if self._live is None:
            console = Console(stderr=True, markup=False, emoji=False, highlight=False)
            self._live = Live(console=console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(self._table(self._live.console.width), refresh=True)

    def _table(self, width: int) -> Table:
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        titles = ("run", "benchmark", "done", "questions/s", "score", "failed", "left")
        shown = [place for place, title in enumerate(titles) if width >= _NARROW or title not in _SPARED]
        for place in shown:
            table.add_column(titles[place], justify="left" if place < 2 else "right")
        for line in self._lines.values():
            cells = line.cells()
            table.add_row(*(self._output.clean(cells[place]) for place in shown))
        return table


class _Line:
    """One benchmark of one run, with its speed."""

    def __init__(self, event: Progress) -> None:
        self.event = event
        self._started = time.monotonic()
        self._first = event.done

    def _speed(self) -> float | None:
        asked, seconds = self.event.done - self._first, time.monotonic() - self._started
        return asked / seconds if asked and seconds > 0 else None

    def cells(self) -> list[str]:
        event, speed = self.event, self._speed()
        left = "" if speed is None else _duration((event.total - event.done) / speed)
        score = "" if event.score is None else f"{100 * event.score:.1f}"
        rate = "" if speed is None else f"{speed:.1f}"
        return [event.run, event.bench, f"{event.done:,}/{event.total:,}", rate, score, str(event.failed), left]

    def text(self) -> str:
        run, bench, done, rate, score, failed, left = self.cells()
        resumed = f", {self.event.resumed:,} from an earlier start" if self.event.resumed else ""
        parts = [f"{run} on {bench}: {done}{resumed}"]
        parts += [f"{rate} questions/s"] if rate else []
        parts += [f"{score} % right so far"] if score and self.event.done < self.event.total else []
        parts += [f"{failed} failed"] if self.event.failed else []
        parts += [f"{left} left"] if left and self.event.done < self.event.total else []
        return ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
