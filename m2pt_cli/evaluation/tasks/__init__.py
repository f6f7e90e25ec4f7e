"""The benchmarks by name; each is one file of this package, imported when it is asked for."""

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

# name -> (module, the benchmark in it)
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
# Names that stand for several.
_GROUPS = {"paper": tuple(name for name in _TASKS if name != "demo")}


def list_benchmarks() -> list[dict[str, Any]]:
    """``{"name", "questions", "source", "cached"}`` of every benchmark; ``cached`` is None for a built-in one."""
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
    """The benchmarks that ``--bench`` names, each once; a name may be a list with commas, or a file of one's own.

    Raises:
        SettingsError: an unknown name, of which the nearest one is suggested; or no name at all.
        InputError: a file that is not there.
    """
    # exists() of os.path: the one of pathlib raises for names that are longer than a file system takes.
    found: dict[str, Task] = {}
    for words in names:
        # A file's own name may hold a comma.
        parts = [words] if exists(words) else [part.strip() for part in words.split(",") if part.strip()]
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
