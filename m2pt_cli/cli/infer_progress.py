"""Progress of ``m2pt infer --input`` while its answers go to a file or a pipe: how many lines are done."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Self

from m2pt_cli.cli.output import Output

if TYPE_CHECKING:
    from rich.live import Live

_DRAW_EVERY = 0.25


class LineProgress:
    """A counter line on a terminal's stderr; silent if the answers are printed on the terminal.

    Use it as a context manager around the run; ``--verbose`` adds a line with the speed at the end.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._is_shown = output.live and not sys.stdout.isatty()
        self._live: Live | None = None
        self._started = self._last = time.monotonic()
        self._done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        if self._done:
            self._output.detail(self._text(0))

    def start(self) -> None:
        """Start timing, after the model has been loaded."""
        self._started = time.monotonic()

    def update(self, done: int, failed: int) -> None:
        """Show that ``done`` lines have been answered or refused, and that ``failed`` answers are errors."""
        self._done = done
        now = time.monotonic()
        if not self._is_shown or (self._live is not None and now - self._last < _DRAW_EVERY):
            return
        self._last = now
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            console = Console(stderr=True, markup=False, emoji=False, highlight=False)
            self._live = Live(console=console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(self._text(failed), refresh=True)

    def _text(self, failed: int) -> str:
        seconds = max(time.monotonic() - self._started, 1e-6)
        lines = "line" if self._done == 1 else "lines"
        errors = f", {failed:,} with an error" if failed else ""
        return f"{self._done:,} {lines} in {seconds:.1f} s ({self._done / seconds:.1f} lines/s){errors}"
