"""Finds benchmarks by name. Each is one module of this package, imported when it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from os.path import exists
from pathlib import Path
from typing import Any

from m2pt_cli.errors import InputError, SettingsError
from m2pt_cli.evaluation.task import Task
from m2pt_cli.files.hub import cached_files
from m2pt_cli.settings import closest

# name -> (module, attribute of the module)
_TASKS = {
    "demo": ("demo", "BENCHMARK"),
    "mme": ("mme", "BENCHMARK"),
    "pope": ("pope", "BENCHMARK"),
    "vsr": ("vsr", "BENCHMARK"),
    "snli-ve": ("snli_ve", "BENCHMARK"),
    "cifar10": ("cifar", "CIFAR10"),
    "cifar100": ("cifar", "CIFAR100"),
    "mnist": ("mnist", "BENCHMARK"),
    "textvqa": ("textvqa", "BENCHMARK"),
}
# Names of groups of benchmarks.
_GROUPS = {"paper": tuple(name for name in _TASKS if name != "demo")}


def list_benchmarks() -> list[dict[str, Any]]:
    """Return ``{"name", "questions", "source", "cached"}`` of every benchmark; ``cached`` is None if it is built in."""
    benchmarks = [_load(name) for name in _TASKS]
    return [
        {
            "name": bench.name,
            "questions": bench.size,
            "source": bench.source,
            "cached": bool(cached_files(bench.source, bench.patterns)) if bench.patterns else None,
        }
        for bench in benchmarks
    ]


def find_tasks(names: Sequence[str]) -> list[Task]:
    """Return the benchmarks that ``--bench`` names, each once.

    A name may be a benchmark, a group, a comma-separated list of them, or a file or folder of the user.

    Raises:
        SettingsError: an unknown name (the message suggests the nearest known one), or no name at all.
        InputError: a file does not exist.
    """
    # os.path.exists, because Path.exists raises for names that are too long for the file system.
    found: dict[str, Task] = {}
    for value in names:
        # The name of a file may contain a comma.
        parts = [value] if exists(value) else [part.strip() for part in value.split(",") if part.strip()]
        for part in parts:
            for name in _GROUPS.get(part, (part,)):
                found.setdefault(name, _load(name))
    if not found:
        raise SettingsError("--bench names no benchmark", "m2pt eval --list names them")
    return list(found.values())


def _load(name: str) -> Task:
    if name in _TASKS:
        module, attribute = _TASKS[name]
        benchmark: Task = getattr(import_module(f"{__name__}.{module}"), attribute)
        return benchmark
    path = Path(name)
    if exists(name) and not (path.is_file() or path.is_dir()):
        raise InputError(f"--bench {name} is neither a file nor a folder", "your own is a .jsonl or .json file")
    if exists(name):
        from m2pt_cli.evaluation.tasks.own_file import OwnBenchmark

        return OwnBenchmark(path)
    if path.suffix or "/" in name:
        raise InputError(f"--bench {name} does not exist", "m2pt eval --list names the benchmarks")
    known = [*_TASKS, *_GROUPS]
    raise SettingsError(f"--bench {name!r} is no benchmark{closest(name, known)}", "m2pt eval --list names them")
