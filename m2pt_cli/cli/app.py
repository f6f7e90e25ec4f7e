"""The typer app, and `main`, which turns every expected error into one line, a hint and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Annotated

import typer

from m2pt_cli.cli import attn_map, count_params, import_, infer, train
from m2pt_cli.cli import eval as eval_command
from m2pt_cli.cli.output import ClosedPipe, Output
from m2pt_cli.errors import DeviceError, M2PTError, SettingsError, is_out_of_memory
from m2pt_cli.version import LIBRARIES, library_versions, untested_versions

# Blank lines keep rich from joining the lines of an epilog.
_EPILOG = "\n\n".join(
    [
        "Try it; no GPU and no network needed:",
        "  m2pt train --base nano --data demo --output-dir runs/demo",
        '  m2pt infer examples/images/shapes.png "What color is the circle?" --adapter runs/demo',
        "Exit codes: 0 success; 1 a base, data set or device is not available; 2 invalid flag or setting; "
        "3 faulty input file; 4 faulty or unsuitable adapter; 130 interrupted; 143 terminated.",
        "M2PT_DEBUG=1 shows the traceback of an error. Results go to stdout, everything else to stderr.",
    ]
)

app = typer.Typer(
    name="m2pt",
    help="Tune a frozen LLaVA with M²PT: train visual prompts, textual prompts and an interaction layer, "
    "0.09 % of its parameters.",
    epilog=_EPILOG,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS: dict[str, ModuleType] = {
    "train": train,
    "eval": eval_command,
    "infer": infer,
    "count-params": count_params,
    "attn-map": attn_map,
    "import": import_,
}
for _name, _module in _COMMANDS.items():
    app.command(_name, help=_module.HELP, epilog=_module.EPILOG)(_module.command)


def _show_version(value: bool) -> None:
    if value:
        versions = library_versions(*LIBRARIES)
        libraries = ", ".join(f"{name} {number}" for name, number in versions.items() if name != "m2pt")
        Output.current().text(f"m2pt {versions['m2pt']} ({libraries})")
        _warn_of_versions()
        raise typer.Exit


def _warn_of_versions() -> None:
    for sentence in untested_versions():
        Output.current().warn(f"{sentence}; see constraints.txt")


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the versions and exit.")
    ] = False,
) -> None:
    _warn_of_versions()


# Message and hint for each errno of a failed write.
_REFUSED_WRITES = {
    errno.ENOSPC: ("the disk is full", "free some space, then run it again"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, then run it again"),
    errno.EFBIG: ("a file would be larger than this shell or file system allows", "see ulimit -f, then run it again"),
    errno.EROFS: ("the file system is read-only", "name a place that can be written to"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code. Errors are shown here and nowhere else.

    Args:
        arguments: the arguments after ``m2pt``; default ``sys.argv[1:]``.
    """
    argv = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in argv
    _replace_closed_streams()
    Output.configure(json=as_json, quiet="--quiet" in argv)
    try:
        # With standalone_mode=False Typer returns the command's value and does not catch exceptions.
        result = app(argv or ["--help"], standalone_mode=False, prog_name="m2pt")
        if result == 130:  # Typer turns Ctrl-C into this value
            return _fail(M2PTError("interrupted"), as_json, code=130)
        return result if isinstance(result, int) else 0
    except ClosedPipe:
        _drop_stdout()
        return 0
    except SystemExit as leaving:
        # rich and Typer exit like this when the reader of a help page closes the pipe.
        if isinstance(leaving.__context__, BrokenPipeError):
            _drop_stdout()
            return 0
        raise
    except KeyboardInterrupt:
        return _fail(M2PTError("interrupted"), as_json, code=130)
    except M2PTError as error:
        if isinstance(error, SettingsError) and error.hint is None:
            error.hint = " ".join(["m2pt", *(name for name in argv[:1] if name in _COMMANDS), "--help"])
        return _fail(error, as_json, code=error.exit_code)
    except Exception as error:
        expected = _as_expected(error)
        if expected is None:
            raise
        return _fail(expected, as_json, code=expected.exit_code)


def _fail(error: M2PTError, as_json: bool, *, code: int) -> int:
    if os.environ.get("M2PT_DEBUG") == "1":
        import traceback

        traceback.print_exc(file=sys.stderr)
    try:
        # A traceback helps with failures of the machine or a library (code 1), not with a mistyped argument.
        debug_hint = "M2PT_DEBUG=1 shows the traceback" if code == 1 and os.environ.get("M2PT_DEBUG") != "1" else None
        Output.current().error(error.to_dict(), as_json=as_json, debug_hint=debug_hint)
    except ClosedPipe:
        _drop_stdout()
    return code


def _as_expected(error: Exception) -> M2PTError | None:
    """Convert an expected error of another library to an `M2PTError`; None means a defect, which shows a traceback."""
    if isinstance(error, BrokenPipeError):
        raise ClosedPipe from None
    # Typer bundles Click, whose exceptions have no public name here; `format_message` identifies them.
    describe = getattr(error, "format_message", None)
    if callable(describe):
        command = getattr(getattr(error, "ctx", None), "command_path", "m2pt")
        return SettingsError(str(describe()), f"{command} --help")
    if isinstance(error, OSError) and error.errno in _REFUSED_WRITES:
        found, advice = _REFUSED_WRITES[error.errno]
        return DeviceError(f"{found} ({error.filename or 'while writing'})", advice)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        name = str(error.filename)
        return SettingsError(
            f"{name[:60]}… has {len(name)} characters: no file system takes such a name", "is a text in a name's place?"
        )
    if is_out_of_memory(error):
        first = str(error).splitlines()[0] if str(error) else "the device ran out of memory"
        return DeviceError(first, "lower --batch-size, or use --gradient-checkpointing or --dtype bfloat16")
    if isinstance(error, MemoryError):
        return DeviceError("the machine ran out of memory", "lower --batch-size or --limit")
    return None


def _replace_closed_streams() -> None:
    """Open ``/dev/null`` in place of a standard stream that was closed at start (``>&-``).

    This also takes the free file descriptor. Otherwise the first opened file would get it and receive the output.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "r" if name == "stdin" else "w"))


def _drop_stdout() -> None:
    # The interpreter flushes stdout at exit, which would print an error for a closed pipe.
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
