"""Tools of all benchmarks: interleaved timing, ratios with spread, peak memory, JSON results with their environment."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

DOES_NOT_FIT = "does not fit"
RESULTS = Path(os.environ.get("M2PT_RESULTS") or Path(__file__).parent / "results")


def interleaved(
    variants: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int,
    device: torch.device,
    left_out: dict[str, str] | None = None,
) -> dict[str, list[float]]:
    """Time every variant once per round, in turn, so that a drift of the machine's speed affects all alike.

    On a CPU this measures CPU seconds of the process (the machine may be busy), on CUDA wall seconds between
    synchronisations. Rounds, time limit and failures are handled as in `in_rounds`.
    """

    def timed(run: Callable[[], object]) -> float:
        synchronise(device)
        start = clock(device)
        run()
        synchronise(device)
        return clock(device) - start

    timers = {name: lambda run=run: timed(run) for name, run in variants.items()}
    return in_rounds(timers, rounds=rounds, warmup=warmup, left_out=left_out)


def in_rounds(
    timers: Mapping[str, Callable[[], float]],
    *,
    rounds: int,
    warmup: int,
    left_out: dict[str, str] | None = None,
    share: float = 1.0,
) -> dict[str, list[float]]:
    """Return the values of every timer from ``rounds`` rounds, after ``warmup`` rounds that are discarded.

    Rounds end early, but not before the first, if another one would exceed the time limit (see `seconds_left`), of
    which the fraction ``share`` may be used.

    Args:
        left_out: receives the reason for every variant that failed; such a variant is dropped and the others
            continue. None: a failure is raised.
    """
    found: dict[str, list[float]] = {name: [] for name in timers}
    until = time.monotonic() + share * seconds_left()
    for number in range(warmup + rounds):
        started = time.monotonic()
        for name in list(found):
            try:
                value = timers[name]()
            except Exception as error:
                if left_out is None:
                    raise
                left_out[name] = reason(error)
                del found[name]
            else:
                if number >= warmup:
                    found[name].append(value)
                continue
            release()  # only here, after the exception and its frames have released the tensors
        now = time.monotonic()
        if number >= warmup and now + (now - started) > until:
            break
    return found


def seconds_left() -> float:
    """Seconds until the epoch time in ``M2PT_UNTIL`` (set by `gpu.sh`); infinite if it is not set."""
    until = os.environ.get("M2PT_UNTIL")
    return float(until) - time.time() if until else float("inf")


def reason(error: BaseException) -> str:
    """Describe in a few words why a variant is missing."""
    if isinstance(error, torch.OutOfMemoryError):
        return DOES_NOT_FIT
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def release() -> None:
    """Free the memory of a failed run."""
    gc.collect()
    if torch.cuda.is_initialized():
        with suppress(RuntimeError):  # after some errors every further CUDA call fails
            torch.cuda.empty_cache()


def clock(device: torch.device) -> float:
    return time.perf_counter() if device.type == "cuda" else time.process_time()


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio(of: list[float], to: list[float]) -> dict[str, float]:
    """Return median, minimum and maximum of ``of / to`` over the rounds."""
    values = [a / b for a, b in zip(of, to, strict=True)]
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def matmul_ceiling(device: torch.device, dtype: torch.dtype, *, repeats: int = 10) -> float:
    """FLOP/s of the fastest of a few large square matrix products: the reference for utilisation."""
    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    inner = 5 if device.type == "cuda" else 1

    def products() -> None:
        for _ in range(inner):
            left @ right

    seconds = interleaved({"product": products}, rounds=repeats, warmup=2, device=device)["product"]
    return 2 * inner * side**3 / min(seconds)


def peak_bytes(prepare: Callable[[], Callable[[], object]], device: torch.device, *, runs: int = 2) -> int:
    """Peak memory of running what ``prepare`` returns, above the memory in use after preparing.

    On a CPU this reads the peak resident size of the process (Linux). Run it in a new process (`in_child`), because
    memory freed by an earlier run would hide a later peak.
    """
    run = prepare()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        for _ in range(runs):
            run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    for _ in range(runs):
        run()
    return _status("VmHWM") - before


def in_child(work: Callable[[], int]) -> int | None:
    """Run ``work()`` in a forked child; None if it failed. Forking is safe here: torch uses one thread."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, str(work()).encode())
            os._exit(0)
        except BaseException as error:
            print(f"in child: {type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return int(text) if text else None


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def setting(device: torch.device) -> dict[str, Any]:
    """Device, versions and commit of a measurement."""
    import peft
    import transformers

    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "commit": _commit() or os.environ.get("M2PT_COMMIT"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str | None:
    """Commit of this checkout, with ``-dirty`` if files differ; None without git or outside a repository."""

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        root = Path(__file__).parents[1]
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)

    try:
        commit = git("rev-parse", "--short", "HEAD").stdout.strip()
        is_dirty = bool(commit) and git("diff", "--quiet", "HEAD", "--", ".", ":!benchmarks/results").returncode == 1
    except OSError:
        return None
    return commit + "-dirty" * is_dirty or None


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def write(name: str, content: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Write ``<folder>/<name>.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def table(title: str, header: list[str], rows: list[list[str]]) -> str:
    """Format a plain text table."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(row: list[str]) -> str:
        cells = zip(row, widths, strict=True)
        return "  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(cells))

    return "\n".join([title, line(header), line(["-" * width for width in widths]), *map(line, rows)])
