"""Trainer callbacks: evaluation, saving and stopping, ``metrics.jsonl``, and progress events."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from m2pt_cli.runtime.signals import StopRequest
from m2pt_cli.training.checkpoints import full_disk_named, write_text
from m2pt_cli.training.events import Events, Saved, Step, Validated

if TYPE_CHECKING:
    from m2pt_cli.training.trainer import M2PTTrainer


# The fields of a `Step` that metrics.jsonl records.
_STEP_FIELDS = ("step", "epoch", "loss", "learning_rate", "grad_norm", "seconds")


class Flow(TrainerCallback):
    """Sets the sampler's epoch, evaluates before every save, and on a stop request saves a checkpoint and stops."""

    def __init__(self, request: StopRequest) -> None:
        self.request = request
        self.trainer: M2PTTrainer | None = None

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # In a resumed epoch, accelerate's set_epoch does not reach the sampler of the wrapped loader.
        if self.trainer is not None and self.trainer.sampler is not None:
            self.trainer.sampler.set_epoch(int((state.epoch or 0) + 1e-6))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_save = True
        control.should_evaluate = control.should_save and args.eval_strategy != "no"
        if self._must_stop(args) and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True

    def _must_stop(self, args: TrainingArguments) -> bool:
        number = self.request.signal_number or 0
        if args.world_size > 1:
            # A signal reaches the processes at different steps; all must stop at the same one.
            highest = torch.tensor(number, device=args.device)
            torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX)
            number = int(highest)
            self.request.signal_number = number or None
        return number > 0


class Recorder(TrainerCallback):
    """Writes a line to ``metrics.jsonl`` and reports an event for every step and every validation."""

    def __init__(self, run_dir: Path, events: Events) -> None:
        self.file = run_dir / "metrics.jsonl"
        self.events = events
        self.trainer: M2PTTrainer | None = None
        self.started = 0.0
        self._stream: IO[str] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.started = time.monotonic()
        if state.is_world_process_zero:
            keep_rows(self.file, until=state.global_step)
            self._stream = self.file.open("a", encoding="utf-8")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        seconds = time.monotonic() - self.started
        # An estimate: the other processes see about as many tokens as this one.
        tokens = self.trainer.tokens_seen * args.world_size if self.trainer else 0
        step = Step(
            step=state.global_step,
            epoch=round(state.epoch or 0.0, 6),
            loss=logs["loss"],
            learning_rate=logs["learning_rate"],
            grad_norm=logs.get("grad_norm", 0.0),
            tokens=tokens,
            seconds=round(seconds, 3),
            memory=peak_memory(args.device),
        )
        self._write({name: getattr(step, name) for name in _STEP_FIELDS})
        self.events(step)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not metrics:
            return
        loss = metrics["eval_loss"]
        self._write({"step": state.global_step, "validation_loss": loss})
        best = state.best_metric is None or loss < state.best_metric
        self.events(Validated(step=state.global_step, loss=loss, is_best=best))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            folder = self.file.with_name(f"checkpoint-{state.global_step}")
            self.events(Saved(step=state.global_step, folder=folder))

    def close(self) -> None:
        """Close ``metrics.jsonl``; call it whether training succeeded or failed."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _write(self, row: dict[str, Any]) -> None:
        if self._stream is not None:
            with full_disk_named(self.file):
                self._stream.write(json.dumps(row) + "\n")
                self._stream.flush()


def keep_rows(file: Path, *, until: int) -> None:
    """Remove the rows after step ``until``; a resumed run writes them again."""
    if not file.is_file():
        return
    lines = file.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if (row := _row(line)) is not None and row["step"] <= until]
    write_text(file, "".join(line + "\n" for line in kept))


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Read the rows of ``metrics.jsonl``; lines that are not complete JSON rows (after a crash) are ignored."""
    if not file.is_file():
        return []
    rows = (_row(line) for line in file.read_text(encoding="utf-8").splitlines())
    return [row for row in rows if row is not None]


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def peak_memory(device: torch.device) -> int | None:
    """Peak bytes allocated on a CUDA device, else the peak resident memory of this process; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
