"""The benchmarks by name; each is one file of this package, imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

from m2pt_cli.errors import SettingsError
from m2pt_cli.evaluation.benchmark import Benchmark
from m2pt_cli.settings import closest

# name -> (module, the name of the benchmark in it)
_BENCHMARKS = {
    "demo": ("demo", "DEMO"),
}


def benchmark_names() -> list[str]:
    """Every name that ``--bench`` knows."""
    return list(_BENCHMARKS)


def find_benchmarks(names: tuple[str, ...]) -> list[Benchmark]:
    """The benchmarks that ``--bench`` names, each once; a name may be a list with commas.

    Raises:
        SettingsError: an unknown name; the nearest one is suggested.
    """
    wanted = [name.strip() for words in names for name in words.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in _BENCHMARKS]
    if unknown:
        raise SettingsError(
            f"--bench {unknown[0]!r} is no benchmark.{closest(unknown[0], _BENCHMARKS)}",
            "m2pt eval --list names the benchmarks",
        )
    return [_load(name) for name in dict.fromkeys(wanted)]


def _load(name: str) -> Benchmark:
    module, attribute = _BENCHMARKS[name]
    benchmark: Benchmark = getattr(import_module(f"{__name__}.{module}"), attribute)
    return benchmark
