"""The end of a run: the kept weights, the model card, the loss curve and the result."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel

from m2pt_cli.errors import DivergenceError
from m2pt_cli.method import check_prompts
from m2pt_cli.records import TrainResult
from m2pt_cli.training.callbacks import peak_memory, read_rows
from m2pt_cli.training.checkpoints import checkpoints, full_disk_named, load_weights, remove_old, write_text
from m2pt_cli.training.distributed import is_first_process
from m2pt_cli.training.events import Events, Finished
from m2pt_cli.training.loss_plot import plot_loss
from m2pt_cli.training.model_card import model_card
from m2pt_cli.training.plan import Plan
from m2pt_cli.training.run_folder import CARD_FILE, LOSS_FILE, METRICS_FILE, RUN_FILE, write_run_file

if TYPE_CHECKING:
    from m2pt_cli.training.setup import Prepared


def finish(plan: Plan, prepared: Prepared, record: dict[str, Any], *, seconds: float, events: Events) -> TrainResult:
    """Write the run directory's final files and say what came out.

    With validation samples the weights of the best checkpoint are kept, else those of the last step.
    """
    run_dir, trainer = prepared.run_dir, prepared.trainer
    steps = trainer.state.global_step
    best = trainer.state.best_global_step or steps
    if best != steps:
        load_weights(prepared.model, run_dir / f"checkpoint-{best}")
    _require_finite(prepared)
    rows = read_rows(run_dir / METRICS_FILE) if is_first_process() else []
    losses = [row["loss"] for row in rows if "loss" in row]
    tail = losses[-max(1, len(losses) // 10) :]
    loss = sum(tail) / len(tail) if tail else None
    memory = peak_memory(prepared.loaded.device)
    result: dict[str, Any] = {
        "steps": steps,
        "best_step": best,
        "loss": loss,
        "validation": trainer.state.best_metric,
        "trainable": sum(prepared.parts.values()),
        "seconds": round(seconds, 1),
        "bytes": 0,
    }
    if is_first_process():
        title = f"{plan.settings.method} on {Path(plan.base).name}, {plan.data['description']}"
        with full_disk_named(run_dir):
            result["bytes"] = publish(prepared, run_dir)
            plot_loss(rows, run_dir / LOSS_FILE, title=title)
        card = model_card(
            plan.settings,
            base=prepared.loaded.name,
            data=plan.data,
            result=result,
            parts=prepared.parts,
            total=prepared.total,
            versions=record["versions"],
        )
        write_text(run_dir / CARD_FILE, card)
        write_run_file(run_dir, record | {"result": result})
        if plan.settings.keep is None:
            for _, folder in checkpoints(run_dir):
                shutil.rmtree(folder, ignore_errors=True)
        else:
            remove_old(run_dir, keep=plan.settings.keep, best_step=best)
    if isinstance(prepared.model, PeftModel):
        check_prompts(prepared.model.eval(), str(run_dir))
    events(
        Finished(
            output_dir=run_dir,
            steps=steps,
            best_step=best,
            loss=loss,
            validation=result["validation"],
            parts=prepared.parts,
            total=prepared.total,
            seconds=seconds,
            tokens=trainer.tokens_seen * trainer.args.world_size,
            memory=memory,
            bytes=result["bytes"],
        )
    )
    fields = {name: result[name] for name in ("steps", "loss", "validation", "trainable", "seconds", "bytes")}
    return TrainResult(output_dir=str(run_dir), method=plan.settings.method, base=plan.base, **fields)


def publish(prepared: Prepared, run_dir: Path) -> int:
    """Move the final weights and configs into ``run_dir``, the config last: without it there is no adapter to load.

    Returns:
        Bytes of the weights.
    """
    partial = run_dir / ".final.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        prepared.save_final(partial)
        files = sorted(partial.iterdir(), key=lambda file: (file.name.endswith("config.json"), file.name))
        size = sum(file.stat().st_size for file in files if file.suffix == ".safetensors")
        for file in files:
            # safetensors makes its files readable for their owner alone, whatever the umask says.
            shutil.copymode(run_dir / RUN_FILE, file)
            os.replace(file, run_dir / file.name)
        return size
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _require_finite(prepared: Prepared) -> None:
    for name, parameter in prepared.model.named_parameters():
        if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
            raise DivergenceError(
                f"{name} became NaN or infinite in the last step; the last good checkpoint is kept",
                "lower --learning-rate (or --visual-lr, --textual-lr, --interaction-lr), or raise --warmup",
            )
