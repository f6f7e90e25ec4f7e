"""Trainer callbacks: control of the run, its record in ``metrics.jsonl``, and its events."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from m2pt_cli.runtime.signals import StopRequest
from m2pt_cli.training.checkpoints import full_disk_named
from m2pt_cli.training.events import Events, Saved, Step, Validated
from m2pt_cli.training.metrics_file import METRICS_FILE, Earlier, earlier, keep_rows, read_rows

if TYPE_CHECKING:
    from m2pt_cli.training.trainer import M2PTTrainer


# The keys of a step's row in metrics.jsonl.
_ROW = ("step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "seconds")


class Flow(TrainerCallback):
    """Sets the sampler's epoch, evaluates before every save, and on request stops with a checkpoint."""

    def __init__(self, request: StopRequest) -> None:
        self.request = request
        self.trainer: M2PTTrainer | None = None

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # accelerate's own set_epoch does not reach a sampler inside the loader of a resumed epoch.
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
        asked = self.request.signal_number or 0
        if args.world_size > 1:
            # A signal reaches the processes at different steps; all must leave at the same one.
            shared = torch.tensor(asked, device=args.device)
            torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
            asked = int(shared)
            self.request.signal_number = asked or None
        return asked > 0


class Recorder(TrainerCallback):
    """Writes ``metrics.jsonl``, one row per step and per validation, and reports the events.

    Attributes:
        earlier: results of the run's earlier starts; seconds and tokens continue from them.
    """

    def __init__(self, run_dir: Path, events: Events) -> None:
        self.file = run_dir / METRICS_FILE
        self.events = events
        self.earlier = Earlier()
        self.trainer: M2PTTrainer | None = None
        self.started = 0.0
        self._stream: IO[str] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.go_on_from(state.global_step)
            self._stream = self.file.open("a", encoding="utf-8")

    def go_on_from(self, step: int) -> None:
        """Drop the rows after ``step``, which will be repeated, and continue the counts from the others."""
        keep_rows(self.file, until=step)
        self.earlier = earlier(read_rows(self.file), until=step)
        self.started = time.monotonic() - self.earlier.seconds

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
        # Assumes that every process has as many tokens as this one.
        tokens = self.earlier.tokens + (self.trainer.tokens_seen * args.world_size if self.trainer else 0)
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
        self._write({name: getattr(step, name) for name in _ROW})
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
        """Close ``metrics.jsonl``; called also after a failed training."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _write(self, row: dict[str, Any]) -> None:
        if self._stream is not None:
            with full_disk_named(self.file):
                self._stream.write(json.dumps(row) + "\n")
                self._stream.flush()


def peak_memory(device: torch.device) -> int | None:
    """Return the peak bytes allocated on a CUDA device, or resident in this process; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
