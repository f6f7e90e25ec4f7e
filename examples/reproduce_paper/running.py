"""Training and evaluating one cell; what is finished is a JSON file, and is never done again."""

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
    """What is the same for all cells of a run.

    Attributes:
        folder: where everything is written.
        images: folders with images of the benchmarks that need them.
        limit: training samples; questions: evaluation questions per benchmark; None for all.
        max_steps: optimiser steps in place of the base's default.
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
    """Train as ``m2pt train`` does; a run that was stopped goes on from its checkpoint, if it has one."""
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
            # One validation, of the last step: no try profits from a lucky checkpoint in between.
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
    """Train and evaluate a cell; the record that its file holds."""
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
    """The record of the base as it is: the first row of table 1."""
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
    """Ask a base with an adapter every question of the benchmarks, as ``m2pt eval`` does."""
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
    """Scores by column of table 1: of ``demo`` its groups and families, else a number per benchmark and MMAvg."""
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
    """The share of right answers over several families' questions."""
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
    """Run every cell that has no file yet; several processes may share a folder, each cell is one's alone.

    Args:
        until: no cell is begun that would end after this time (seconds since the epoch) if it took as long as the
            longest of this process so far.

    Returns:
        How many cells have a file now.
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
    """Whether this process has the lock; the system takes it back when the process ends, however it ends."""
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
    """All of it or nothing: a killed process leaves no half a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, file)
