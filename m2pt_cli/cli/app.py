"""The commands, and the top-level error handler: one line, a hint and an exit code for every failure."""

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

# Blank lines keep rich from joining the lines of an epilog into one.
_EPILOG = "\n\n".join(
    [
        "Try it, no GPU and no network needed:",
        "  m2pt train --base nano --data demo --output-dir runs/demo",
        '  m2pt infer examples/images/shapes.png "What color is the circle?" --adapter runs/demo',
        "Exit codes: 0 done; 1 a base, data set or device that can't be had; 2 a flag or a setting; "
        "3 an input file; 4 an adapter; 130 / 143 interrupted / terminated.",
        "M2PT_DEBUG=1 shows the traceback of an error. Results go to stdout, all else to stderr.",
    ]
)

app = typer.Typer(
    name="m2pt",
    help="Adapt a frozen LLaVA with M²PT: visual prompts, textual prompts and an interaction layer, 0.09 % of it.",
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
        bool,
        typer.Option("--version", "-V", callback=_show_version, is_eager=True, help="Print the versions and leave."),
    ] = False,
) -> None:
    _warn_of_versions()


# Messages and hints for operating-system errors on writing.
_REFUSED_WRITES = {
    errno.ENOSPC: ("the disk is full", "free some space, then run it again"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, then run it again"),
    errno.EFBIG: ("a file would be larger than this shell or file system allows", "see ulimit -f, then run it again"),
    errno.EROFS: ("the file system is read-only", "name a place that can be written to"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; only this function decides how a failure is shown.

    Args:
        arguments: the words after ``m2pt``; the process's own by default.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["help"]:  # m2pt help, m2pt help train
        words = [*words[1:2], "--help"]
    as_json = "--json" in words
    _replace_closed_streams()
    Output.configure(json=as_json, quiet="--quiet" in words)
    try:
        # Without the standalone mode Typer returns the command's value and lets every exception through.
        result = app(words or ["--help"], standalone_mode=False, prog_name="m2pt")
        if result == 130:  # Typer turns Ctrl-C into this value
            return _fail(M2PTError("interrupted"), as_json, code=130)
        return result if isinstance(result, int) else 0
    except ClosedPipe:
        _drop_stdout()
        return 0
    except SystemExit as leaving:
        # rich and Typer end like this when the reader of a help page closes the pipe.
        if isinstance(leaving.__context__, BrokenPipeError):
            _drop_stdout()
            return 0
        raise
    except KeyboardInterrupt:
        return _fail(M2PTError("interrupted"), as_json, code=130)
    except M2PTError as error:
        if isinstance(error, SettingsError) and error.hint is None:
            error.hint = " ".join(["m2pt", *(word for word in words[:1] if word in _COMMANDS), "--help"])
        return _fail(error, as_json, code=error.exit_code)
    except Exception as error:
        expected = _as_expected(error)
        if expected is None:
            raise
        return _fail(expected, as_json, code=expected.exit_code, is_foreign=True)


def _fail(error: M2PTError, as_json: bool, *, code: int, is_foreign: bool = False) -> int:
    if os.environ.get("M2PT_DEBUG") == "1":
        import traceback

        traceback.print_exc(file=sys.stderr)
    try:
        # A traceback may clarify errors of the system or a library, but not a wrong argument.
        is_foreign = code == 1 and (is_foreign or error.__context__ is not None)
        debug_hint = "M2PT_DEBUG=1 shows the traceback" if is_foreign and os.environ.get("M2PT_DEBUG") != "1" else None
        Output.current().error(error.to_dict(), as_json=as_json, debug_hint=debug_hint)
    except ClosedPipe:
        _drop_stdout()
    return code


def _as_expected(error: Exception) -> M2PTError | None:
    """Convert an expected foreign error to an M2PTError; None for a bug, which ends in a traceback."""
    if isinstance(error, BrokenPipeError):
        raise ClosedPipe from None
    # Typer vendors Click without public names for its exceptions: recognise them by their method.
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
    """Open the null device in place of a closed stdout or stderr (``>&-``).

    It takes their file descriptors too: else the first file opened would get them and be overwritten by output.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "r" if name == "stdin" else "w"))


def _drop_stdout() -> None:
    # The interpreter flushes stdout once more at exit; after a closed pipe that would print an error.
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
