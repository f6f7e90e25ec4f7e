"""`TrainSettings` in the terms of `transformers.TrainingArguments`."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from transformers import TrainingArguments

from m2pt_cli.settings import TrainSettings
from m2pt_cli.training.distributed import process_count


def total_steps(settings: TrainSettings, samples: int) -> int:
    """Optimiser steps of the whole run, counted as `transformers.Trainer` counts them.

    Args:
        settings: resolved: ``batch_size``, ``accumulation`` and ``epochs`` or ``max_steps`` are set.
        samples: number of training samples.
    """
    if settings.max_steps is not None:
        return settings.max_steps
    per_device = settings.batch_size or 1
    batches = math.ceil(math.ceil(samples / per_device) / process_count())
    per_epoch = math.ceil(batches / (settings.accumulation or 1))
    return math.ceil((settings.epochs or 1) * per_epoch)


def worker_count(settings: TrainSettings, device: torch.device) -> int:
    """Processes that prepare images: as many as the user said, none beside a CPU that computes, else up to four."""
    if settings.workers is not None or device.type == "cpu":
        return settings.workers or 0
    return min(4, (os.cpu_count() or 1) // process_count())


def training_arguments(
    settings: TrainSettings, *, run_dir: Path, steps: int, validates: bool, device: torch.device, autocast: str | None
) -> TrainingArguments:
    """The arguments of a run.

    Args:
        settings: resolved.
        steps: optimiser steps, see `total_steps`.
        validates: whether there are validation samples.
        autocast: "bf16" or "fp16" where the trained weights are wider than what the device computes in.
    """
    if device.type == "cuda" and device.index is not None and process_count() == 1:
        # accelerate takes the first visible device otherwise.
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    every = settings.save_steps or max(1, math.ceil(steps / 5))
    workers = worker_count(settings, device)
    reporters = [name for name in settings.report_to if name != "none"]
    if "tensorboard" in reporters:
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(run_dir / "trackers"))
    arguments = TrainingArguments(
        output_dir=str(run_dir),
        run_name=run_dir.name,
        seed=settings.seed,
        data_seed=settings.seed,
        use_cpu=device.type == "cpu",
        bf16=autocast == "bf16",
        fp16=autocast == "fp16",
        per_device_train_batch_size=settings.batch_size or 1,
        per_device_eval_batch_size=settings.batch_size or 1,
        gradient_accumulation_steps=settings.accumulation or 1,
        max_steps=steps,
        learning_rate=settings.learning_rate or 0.0,
        weight_decay=settings.weight_decay or 0.0,
        warmup_steps=math.ceil((settings.warmup or 0.0) * steps),
        lr_scheduler_type="cosine",
        optim="adamw_torch",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=every,
        eval_strategy="steps" if validates else "no",
        eval_steps=every,
        metric_for_best_model="loss" if validates else None,
        greater_is_better=False if validates else None,
        dataloader_num_workers=workers,
        dataloader_persistent_workers=workers > 0,
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        label_names=["labels"],
        report_to=reporters or "none",
        disable_tqdm=True,
        use_cache=True,  # the model's config stays as it is; `supervised_loss` turns the cache off
        log_level="error",
        # With visual_tokens="patches" the last vision layer's prompts get no gradient.
        ddp_find_unused_parameters=True,
    )
    if process_count() == 1 and device.type == "cuda":
        # Several visible devices would mean DataParallel, which M²PT refuses: torchrun is the way to use them.
        _ = arguments.device
        arguments._n_gpu = 1
    return arguments
