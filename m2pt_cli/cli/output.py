"""The only place that prints: answers on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any, TextIO

from m2pt_cli.records import to_json

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

# Control characters (but newline and tab), C1 controls, and the marks that reorder text on screen.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class ClosedPipe(BaseException):
    """The reader of stdout went away: a quiet end, not an error (so no `Exception` handler may swallow it)."""


class Output:
    """Where a command's words go.

    Args:
        json: stdout carries JSON documents only.
        quiet: stderr carries errors only.
        verbose: stderr carries details as well.
    """

    _current: Output | None = None

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.is_json = json
        self.is_quiet = quiet
        self.is_verbose = verbose

    @classmethod
    def configure(cls, *, json: bool = False, quiet: bool = False, verbose: bool = False) -> Output:
        """Make this the output of the running command."""
        cls._current = cls(json=json, quiet=quiet, verbose=verbose)
        return cls._current

    @classmethod
    def current(cls) -> Output:
        """The output of the running command."""
        return cls._current or cls.configure()

    @property
    def live(self) -> bool:
        """Whether stderr is a terminal on which a moving display may be drawn."""
        return sys.stderr.isatty() and not self.is_quiet and os.environ.get("TERM") != "dumb"

    def text(self, text: str, *, end: str = "\n") -> None:
        """Text on stdout, flushed; model text must be passed through `clean` first."""
        self._write(sys.stdout, text + end)

    def json(self, value: Any) -> None:
        """One JSON document on one line of stdout, flushed; never NaN."""
        self._write(sys.stdout, json.dumps(to_json(value), ensure_ascii=False, allow_nan=False) + "\n")

    def table(self, renderable: RenderableType) -> None:
        """A rich table on stdout; off a terminal it is as wide as it needs."""
        console = self._console(sys.stdout)
        with console.capture() as capture:
            console.print(renderable)
        self._write(sys.stdout, "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n")

    def status(self, text: str) -> None:
        """A line on stderr about what is being done; silent under ``--quiet``."""
        if not self.is_quiet:
            # A path may hold a newline.
            self._write(sys.stderr, self.clean(text).replace("\n", " ") + "\n")

    def status_table(self, renderable: RenderableType) -> None:
        """A rich table on stderr; silent under ``--quiet``."""
        if not self.is_quiet:
            self._console(sys.stderr).print(renderable)

    def warn(self, text: str) -> None:
        """A warning on stderr."""
        self.status(f"warning: {_one_line(text)}")

    def hint(self, text: str) -> None:
        """A next step, on stderr."""
        self.status(f"hint: {_one_line(text)}")

    def detail(self, text: str) -> None:
        """A line on stderr under ``--verbose``."""
        if self.is_verbose:
            self.status(text)

    def error(self, error: dict[str, dict[str, str | None]], *, as_json: bool, debug_hint: str | None = None) -> None:
        """An error on stderr: one line and a hint, or one JSON document."""
        if as_json:
            self._write(sys.stderr, json.dumps(error, ensure_ascii=False) + "\n")
            return
        body = error["error"]
        lines = [f"error: {_one_line(self.clean(body['message'] or ''))}"]
        lines += [f"hint: {_one_line(self.clean(text))}" for text in (body["hint"], debug_hint) if text]
        self._write(sys.stderr, "\n".join(lines) + "\n")

    @staticmethod
    def clean(text: str) -> str:
        """``text`` without control characters, so that a model's or a file's words can't drive the terminal."""
        return _UNPRINTABLE.sub("", text)

    @staticmethod
    def _console(stream: TextIO) -> Console:
        from rich.console import Console

        # Off a terminal rich would wrap at 80 columns; scripts want whole rows. No markup, no emoji.
        width = None if stream.isatty() else 400
        return Console(file=stream, width=width, markup=False, emoji=False, highlight=False, soft_wrap=False)

    @staticmethod
    def _write(stream: TextIO, text: str) -> None:
        try:
            stream.write(text)
            stream.flush()
        except BrokenPipeError:
            raise ClosedPipe from None
        except UnicodeEncodeError:
            # A terminal that can't show a character shows an escape instead of a traceback.
            encoding = stream.encoding or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            stream.flush()


def _one_line(text: str) -> str:
    return " ".join(text.split())
