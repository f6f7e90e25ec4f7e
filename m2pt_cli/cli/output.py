"""All output of the command line: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any, TextIO

from m2pt_cli.records import to_json

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

# Control characters except newline and tab, C1 controls, and bidirectional marks, which reorder text on screen.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class ClosedPipe(BaseException):
    """The reader of stdout closed the pipe.

    The command then ends silently with success. A `BaseException`, so that no `except Exception` catches it.
    """


class Output:
    """Prints what a command outputs.

    Args:
        json: print only JSON documents on stdout.
        quiet: print only errors on stderr.
        verbose: print details on stderr too.
    """

    _current: Output | None = None

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.is_json = json
        self.is_quiet = quiet
        self.is_verbose = verbose

    @classmethod
    def configure(cls, *, json: bool = False, quiet: bool = False, verbose: bool = False) -> Output:
        """Create the output of the running command and return it."""
        cls._current = cls(json=json, quiet=quiet, verbose=verbose)
        return cls._current

    @classmethod
    def current(cls) -> Output:
        """The output of the running command."""
        return cls._current or cls.configure()

    @property
    def live(self) -> bool:
        """Whether a live display may be drawn: stderr is a capable terminal and not quiet."""
        return sys.stderr.isatty() and not self.is_quiet and os.environ.get("TERM") != "dumb"

    def text(self, text: str, *, end: str = "\n") -> None:
        """Print text on stdout and flush; pass text of a model or a file through `clean` first."""
        self._write(sys.stdout, text + end)

    def json(self, value: Any) -> None:
        """Print one JSON document on one line of stdout and flush; NaN is an error."""
        self._write(sys.stdout, json.dumps(to_json(value), ensure_ascii=False, allow_nan=False) + "\n")

    def table(self, renderable: RenderableType) -> None:
        """Print a rich table on stdout; outside a terminal rows are not wrapped at 80 columns."""
        console = self._console(sys.stdout)
        with console.capture() as capture:
            console.print(renderable)
        self._write(sys.stdout, "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n")

    def status(self, text: str) -> None:
        """Print a progress line on stderr; nothing under ``--quiet``."""
        if not self.is_quiet:
            # A path may contain a newline.
            self._write(sys.stderr, self.clean(text).replace("\n", " ") + "\n")

    def status_table(self, renderable: RenderableType) -> None:
        """Print a rich table on stderr; nothing under ``--quiet``."""
        if not self.is_quiet:
            self._console(sys.stderr).print(renderable)

    def warn(self, text: str) -> None:
        """Print a warning on stderr; nothing under ``--quiet``."""
        self.status(f"warning: {_one_line(text)}")

    def detail(self, text: str) -> None:
        """Print a line on stderr, only under ``--verbose``."""
        if self.is_verbose:
            self.status(text)

    def error(self, error: dict[str, dict[str, str | None]], *, as_json: bool, debug_hint: str | None = None) -> None:
        """Print an error on stderr: a line and hints, or one JSON document."""
        if as_json:
            self._write(sys.stderr, json.dumps(error, ensure_ascii=False) + "\n")
            return
        body = error["error"]
        lines = [f"error: {_one_line(self.clean(body['message'] or ''))}"]
        lines += [f"hint: {_one_line(self.clean(text))}" for text in (body["hint"], debug_hint) if text]
        self._write(sys.stderr, "\n".join(lines) + "\n")

    @staticmethod
    def clean(text: str) -> str:
        """Remove control characters, so that text of a model or a file can't control the terminal."""
        return _UNPRINTABLE.sub("", text)

    @staticmethod
    def _console(stream: TextIO) -> Console:
        from rich.console import Console

        # Outside a terminal rich wraps at 80 columns, but scripts need whole rows.
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
            # Escape characters that the stream's encoding does not have, instead of failing.
            encoding = stream.encoding or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            stream.flush()


def _one_line(text: str) -> str:
    return " ".join(text.split())
