"""Train and evaluate one cell; a finished cell is a JSON file and is never run again."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cells import Cell, Variant

from m2pt_cli import EvalSettings, TrainSettings, evaluate, train
from m2pt_cli.demo.questions import FAMILIES
from m2pt_cli.evaluation.results import EvalRun
from m2pt_cli.models.catalog import entry_of
from m2pt_cli.models.count import count_parameters

UNTUNED = "none"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Settings that are the same for all cells of a run.

    Attributes:
        folder: output folder.
        images: folders with images of the benchmarks that need them.
        limit: training samples; None for all.
        questions: evaluation questions per benchmark; None for all.
        max_steps: optimiser steps instead of the base's default.
    """

    folder: Path
    base: str
    data: str
    bench: tuple[str, ...]
    images: tuple[Path, ...] = ()
    limit: int | None = None
    questions: int | None = None
    max_steps: int | None = None
    device: str | None = None
    threads: int | None = None


def train_variant(
    setup: Setup,
    variant: Variant,
    run_dir: Path,
    *,
    seed: int,
    rates: dict[str, float],
    max_steps: int | None,
    validation: str | None = None,
) -> dict[str, Any]:
    """Train as ``m2pt train`` does; an interrupted run resumes from its checkpoint, if there is one."""
    result = train(
        TrainSettings(
            base=setup.base,
            data=(setup.data,),
            limit=setup.limit,
            method=variant.method,
            visual_prompts=variant.visual_prompts,
            textual_prompts=variant.textual_prompts,
            interaction=variant.interaction,
            lora_rank=variant.lora_rank,
            max_steps=max_steps,
            # Validate only the last step, so that no try profits from a lucky checkpoint before it.
            save_steps=max_steps if validation is not None else None,
            validation=validation,
            seed=seed,
            device=setup.device,
            threads=setup.threads,
            output_dir=run_dir,
            resume=(run_dir / "run.yaml").exists(),
            **rates,  # type: ignore[arg-type]
        )
    )
    return {"method": result.method, "loss": result.loss, "validation": result.validation, "seconds": result.seconds}


def run_cell(setup: Setup, cell: Cell, rates: dict[str, float]) -> dict[str, Any]:
    """Train and evaluate a cell; return the record for its file."""
    variant = cell.variant
    run_dir = setup.folder / "runs" / cell.name
    started = time.monotonic()
    trained = train_variant(setup, variant, run_dir, seed=cell.seed, rates=rates, max_steps=setup.max_steps)
    counts = count_parameters(setup.base, entry_of(setup.base).geometry, variant.recipe())
    is_full = variant.method == "full"
    run = evaluate_folder(
        setup, str(run_dir) if is_full else setup.base, "none" if is_full else str(run_dir), cell.name
    )
    return {
        "name": variant.name,
        "label": variant.label,
        "method": variant.method,
        "visual_prompts": variant.visual_prompts,
        "textual_prompts": variant.textual_prompts,
        "interaction": variant.interaction,
        "lora_rank": variant.lora_rank if variant.method == "lora" else None,
        "seed": cell.seed,
        "rates": rates,
        "trainable": counts.trainable,
        "percent": counts.percent,
        "loss": trained["loss"],
        "seconds": {"training": trained["seconds"], "evaluation": run.seconds, "all": time.monotonic() - started},
        "scores": scores_of(run),
        "versions": run.versions,
    }


def run_untuned(setup: Setup) -> dict[str, Any]:
    """Return the record of the untuned base: the first row of table 1."""
    run = evaluate_folder(setup, setup.base, "none", UNTUNED)
    return {
        "name": UNTUNED,
        "label": "none (untuned)",
        "method": UNTUNED,
        "seed": 0,
        "trainable": 0,
        "percent": 0.0,
        "seconds": {"evaluation": run.seconds},
        "scores": scores_of(run),
        "versions": run.versions,
    }


def evaluate_folder(setup: Setup, base: str, adapter: str, name: str) -> EvalRun:
    """Evaluate a base with an adapter on all questions of the benchmarks, as ``m2pt eval`` does."""
    result = evaluate(
        EvalSettings(
            bench=setup.bench,
            base=base,
            adapter=(adapter,),
            images=setup.images,
            limit=setup.questions,
            device=setup.device,
            threads=setup.threads,
            output_dir=setup.folder / "evals" / name,
        )
    )
    return result.runs[0]


def scores_of(run: EvalRun) -> dict[str, float | None]:
    """Return scores by column of table 1: groups and families of ``demo``, else a number per benchmark and MMAvg."""
    if "demo" in run.benchmarks:
        block = run.benchmarks["demo"]
        tasks: dict[str, dict[str, Any]] = block["tasks"]
        groups: dict[str, float | None] = {"seen": block["seen"], "unseen": block["unseen"]}
        for kind, is_seen in (("seen", True), ("unseen", False)):
            for group, is_shifted in (("clean", False), ("shifted", True)):
                groups[f"{kind}, {group}"] = share_right(
                    [
                        task
                        for family, task in tasks.items()
                        if FAMILIES[family].seen is is_seen and (FAMILIES[family].style != "plain") is is_shifted
                    ]
                )
        return groups | {family: task["accuracy"] for family, task in tasks.items()}
    scores: dict[str, float | None] = {
        name: block["total"] if name == "mme" else block["accuracy"] for name, block in run.benchmarks.items()
    }
    return scores | {"mmavg": run.mmavg}


def share_right(tasks: Sequence[dict[str, Any]]) -> float | None:
    """Return the fraction of right answers over the questions of several families."""
    questions = sum(task["n"] for task in tasks)
    return sum(task["accuracy"] * task["n"] for task in tasks) / questions if questions else None


def finish_cells(
    cells: Sequence[Cell],
    folder: Path,
    run: Callable[[Cell], dict[str, Any]],
    *,
    until: float | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> int:
    """Run every cell that has no file yet; processes may share a folder, a lock keeps each cell to one of them.

    Args:
        until: no cell is started that would end after this time (seconds since the epoch) if it took as long as the
            longest of this process so far.

    Returns:
        The number of cells that have a file now.
    """
    longest = 0.0
    for cell in cells:
        file = folder / "cells" / f"{cell.name}.json"
        if until is not None and time.time() + longest > until:
            break
        with claimed(folder / "locks" / cell.name) as is_ours:
            if not is_ours or file.exists():
                continue
            started = time.monotonic()
            write_json(file, run(cell))
            longest = max(longest, time.monotonic() - started)
        report(f"{cell.name}: {time.monotonic() - started:.0f} s")
    return sum((folder / "cells" / f"{cell.name}.json").exists() for cell in cells)


@contextmanager
def claimed(lock: Path, *, wait: bool = False) -> Iterator[bool]:
    """Yield whether this process holds the lock; the system releases it when the process ends for any reason."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, file)
