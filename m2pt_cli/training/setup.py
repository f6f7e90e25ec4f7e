"""Set up a run: load the base, add the method, tokenise the samples and build the trainer."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import TrainingArguments

from m2pt_cli.data.chat import get_template
from m2pt_cli.data.collate import Collator, ImagePreparer, ProcessorImages, image_preparer
from m2pt_cli.data.sample import Sample
from m2pt_cli.data.tokenize import EncodedSample, EncodedSamples, encode_samples
from m2pt_cli.errors import InputError
from m2pt_cli.families.processor import set_visual_tokens
from m2pt_cli.files.adapter_names import CONFIG_FILE
from m2pt_cli.method import PARTS, M2PTConfig, parts_of, preset, select_full, train_in_fp32
from m2pt_cli.models.load import (
    LoadedBase,
    choose_device,
    choose_dtype,
    load_base,
    require_fast_enough,
    set_seed,
    set_threads,
)
from m2pt_cli.runtime.distributed import process_count
from m2pt_cli.runtime.signals import StopRequest
from m2pt_cli.settings import TrainSettings
from m2pt_cli.training.callbacks import Flow, Recorder
from m2pt_cli.training.events import Events, Notice
from m2pt_cli.training.norms import fuse_norms
from m2pt_cli.training.plan import Plan
from m2pt_cli.training.trainer import M2PTTrainer


def total_steps(settings: TrainSettings, samples: int) -> int:
    """Number of optimiser steps of the whole run, counted as `transformers.Trainer` does.

    Args:
        settings: resolved settings: ``batch_size``, ``accumulation`` and ``epochs`` or ``max_steps`` are set.
        samples: number of training samples.
    """
    if settings.max_steps is not None:
        return settings.max_steps
    per_device = settings.batch_size or 1
    batches = math.ceil(math.ceil(samples / per_device) / process_count())
    per_epoch = math.ceil(batches / (settings.accumulation or 1))
    return math.ceil((settings.epochs or 1) * per_epoch)


def worker_count(settings: TrainSettings, device: torch.device) -> int:
    """Number of data loader workers: ``--workers`` if given, else 0 when training on a CPU and up to 4 otherwise."""
    if settings.workers is not None or device.type == "cpu":
        return settings.workers or 0
    return min(4, (os.cpu_count() or 1) // process_count())


def training_arguments(
    settings: TrainSettings, *, run_dir: Path, steps: int, validates: bool, device: torch.device, autocast: str | None
) -> TrainingArguments:
    """Build the `transformers.TrainingArguments` of a run.

    Args:
        settings: resolved settings.
        steps: optimiser steps, see `total_steps`.
        validates: whether there are validation samples.
        autocast: "bf16" or "fp16" for mixed precision, None for none.
    """
    if device.type == "cuda" and device.index is not None and process_count() == 1:
        # Otherwise accelerate uses the first visible device.
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
        use_cache=True,  # leaves the model's config unchanged; `supervised_loss` turns the cache off
        log_level="error",
        # With visual_tokens="patches" the prompts of the last vision layer get no gradient.
        ddp_find_unused_parameters=True,
    )
    if process_count() == 1 and device.type == "cuda":
        # With several visible devices Trainer would use DataParallel, which M²PT rejects; several GPUs need torchrun.
        _ = arguments.device
        arguments._n_gpu = 1
    return arguments


@dataclass(frozen=True)
class EncodedData:
    """Tokenised samples and their collator; ``validation`` is None without held-out samples."""

    collator: Collator | SkippingCollator
    train: EncodedSamples
    validation: EncodedSamples | None


class SkippingCollator:
    """A collator that drops and counts samples whose image can't be decoded.

    In a large data set only image headers are checked before training, so a damaged image is first found here.

    Args:
        collator: builds the batch from the remaining samples.
    """

    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def __call__(self, samples: Sequence[EncodedSample]) -> dict[str, Tensor]:
        """Collate the readable samples; if any were dropped, the batch has their number as ``skipped``.

        Raises:
            InputError: no sample of the batch is readable, or the fault is not in an image.
        """
        try:
            return self.collator(samples)
        except InputError:
            readable = [sample for sample in samples if self._is_readable(sample)]
            if not readable or len(readable) == len(samples):
                raise
            skipped = torch.tensor(len(samples) - len(readable))
        return {**self.collator(readable), "skipped": skipped}

    def _is_readable(self, sample: EncodedSample) -> bool:
        try:
            self.collator.images.prepare(sample.sample.images)
        except InputError:
            return False
        return True


def encode_data(plan: Plan, processor: Any, events: Events) -> EncodedData:
    """Tokenise the training and validation samples of a plan.

    Args:
        processor: the base's processor, set to the number of image tokens that the method uses.

    Raises:
        InputError: samples are faulty (without ``skip_bad``), or none are left.
        SettingsError: the base does not support the template or the image fit.
    """
    images = image_preparer(processor, fit=plan.settings.image_fit or "base")
    tokenizer = processor.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    collator = Collator(images, pad_token_id=pad)
    return EncodedData(
        collator=SkippingCollator(collator) if plan.settings.skip_bad else collator,
        train=_encoded(plan.train, "training", plan.settings, processor, images, events),
        validation=_encoded(plan.validation, "validation", plan.settings, processor, images, events)
        if plan.validation
        else None,
    )


def _encoded(
    samples: Sequence[Sample],
    what: str,
    settings: TrainSettings,
    processor: Any,
    images: ImagePreparer | ProcessorImages,
    events: Events,
) -> EncodedSamples:
    encoded = encode_samples(
        samples,
        get_template(settings.template or "plain", processor),
        processor.tokenizer,
        image_token_id=processor.image_token_id,
        image_ids=images.image_ids,
        max_length=settings.max_length or 1024,
        skip_bad=settings.skip_bad,
    )
    if encoded.faults:
        events(Notice(f"{encoded.faults:,} faulty {what} samples are skipped", is_warning=True))
    if not len(encoded):
        raise InputError(f"no {what} sample is left", "look at the data with --dry-run")
    if encoded.num_cut:
        text = f"{encoded.num_cut:,} of {len(encoded):,} {what} samples are cut to --max-length {settings.max_length}"
        events(Notice(text, is_warning=True))
    return encoded


ADAPTER = "default"
# Name of each autocast dtype in `TrainingArguments`.
_AUTOCAST = {torch.bfloat16: "bf16", torch.float16: "fp16"}
# Device types and dtypes for which LoRA trains under autocast, see `prepare`.
_LORA_AUTOCAST = (("cuda", torch.bfloat16), ("cuda", torch.float16), ("cpu", torch.bfloat16))


@dataclass
class Prepared:
    """A run with its model loaded.

    Attributes:
        model: a PEFT model, or a LLaVA for full fine-tuning.
        data: tokenised samples and their collator.
        part_of: maps the name of every trained parameter to its part.
        parts: number of trained parameters by part.
        total: number of parameters of the base.
        steps: optimiser steps of the whole run.
        autocast: "bf16", "fp16" or None, see `training_arguments`.
        trainer, recorder: set by `make_trainer`.
    """

    settings: TrainSettings
    run_dir: Path
    loaded: LoadedBase
    model: nn.Module
    data: EncodedData
    part_of: Mapping[str, str]
    parts: dict[str, int]
    total: int
    steps: int
    autocast: str | None
    trainer: M2PTTrainer = field(init=False)
    recorder: Recorder = field(init=False)

    def make_trainer(self, request: StopRequest, events: Events) -> M2PTTrainer:
        """Build the trainer of this run; setting ``request`` stops it after the current step."""
        settings = self.settings
        flow, self.recorder = Flow(request), Recorder(self.run_dir, events)
        self.trainer = M2PTTrainer(
            model=self.model,
            args=training_arguments(
                settings,
                run_dir=self.run_dir,
                steps=self.steps,
                validates=self.data.validation is not None,
                device=self.loaded.device,
                autocast=self.autocast,
            ),
            run_dir=self.run_dir,
            train_samples=self.data.train,  # type: ignore[arg-type]
            validation_samples=self.data.validation,  # type: ignore[arg-type]
            collator=self.data.collator,
            lengths=self.data.train.lengths,
            part_of=self.part_of,
            learning_rates=learning_rates(settings),
            keep=settings.keep or 2,
            callbacks=[flow, self.recorder],
        )
        flow.trainer = self.recorder.trainer = self.trainer
        return self.trainer

    def device_record(self) -> dict[str, Any]:
        """Device name, dtype and CPU threads, for ``run.yaml``."""
        device = self.loaded.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        return {
            "name": name,
            "dtype": str(self.loaded.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        }

    def save_final(self, folder: Path) -> None:
        """Save the result for users: a PEFT adapter, or for full fine-tuning a transformers model and its processor."""
        if isinstance(self.model, PeftModel):
            self.model.save_pretrained(str(folder), save_embedding_layers=False)
            (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
            record_in_adapter(folder, self.settings, self.loaded)
        else:
            self.model.save_pretrained(str(folder))  # type: ignore[operator]
            self.loaded.processor.save_pretrained(str(folder))


def prepare(plan: Plan, run_dir: Path, events: Events) -> Prepared:
    """Load the base, add the method and tokenise the samples.

    Raises:
        UnavailableError, DeviceError: the base or the device is not available.
        SettingsError: this base does not support the method, the template or the image fit.
        InputError: samples are faulty, or none are left.
    """
    settings = plan.settings
    set_threads(settings.threads, parameters=plan.entry.geometry.total_parameters)
    set_seed(settings.seed)
    is_full = settings.method == "full"
    require_fast_enough(plan.entry, settings.device, for_training=True)
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device)
    loaded = load_base(
        plan.base,
        device=settings.device,
        dtype="float32" if is_full else settings.dtype,  # small updates would be rounded away in half precision
        report=lambda text: events(Notice(text)),
    )
    total = sum(p.numel() for p in loaded.model.parameters())
    model = add_method(loaded, settings)
    set_visual_tokens(loaded.processor, loaded.model, settings.visual_tokens, settings.visual_prompts or 0)
    if settings.gradient_checkpointing:
        enable_checkpointing(model)
    fuse_norms(model)
    # PEFT casts LoRA's inputs to fp32, the dtype of its weights. Under autocast this cast is not needed.
    lora_autocast = settings.method == "lora" and (device.type, dtype) in _LORA_AUTOCAST
    if lora_autocast:
        leave_inputs_narrow(model)
    data = encode_data(plan, loaded.processor, events)
    part_of = parts_of(model)
    return Prepared(
        settings=settings,
        run_dir=run_dir,
        loaded=loaded,
        model=model,
        data=data,
        part_of=part_of,
        parts=count_parts(model, part_of),
        total=total,
        steps=total_steps(settings, len(data.train)),
        autocast=_AUTOCAST.get(dtype) if is_full or lora_autocast or dtype == torch.float16 else None,
    )


def method_config(settings: TrainSettings, base_config: Any) -> PeftConfig | None:
    """Return the PEFT config of the method; None for full fine-tuning."""
    return preset(
        settings.method,
        base_config,
        num_visual_prompts=settings.visual_prompts or 0,
        num_textual_prompts=settings.textual_prompts or 0,
        interaction=settings.interaction,
        visual_tokens=settings.visual_tokens,
        train_lm_head=settings.train_lm_head,
        init=settings.init,
        lora_rank=settings.lora_rank,
    )


def add_method(loaded: LoadedBase, settings: TrainSettings) -> nn.Module:
    """Wrap the base in the PEFT adapter of ``settings.method`` and return it, with only trained parameters unfrozen.

    For ``full`` nothing is wrapped; the trained parameters of the base are chosen.
    """
    config = method_config(settings, loaded.model.config)
    if config is None:
        select_full(loaded.model)
        return loaded.model
    config.base_model_name_or_path = loaded.name
    if isinstance(config, M2PTConfig):
        config.chat_template = settings.template
        config.image_fit = settings.image_fit
        config.base_fingerprint = loaded.fingerprint
    model = get_peft_model(loaded.model, config, adapter_name=ADAPTER)
    train_in_fp32(model, ADAPTER)
    return model


def leave_inputs_narrow(model: nn.Module) -> None:
    """Turn off LoRA's cast of inputs to fp32; autocast then casts the LoRA weights to the dtype of the inputs."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False


def record_in_adapter(folder: Path, settings: TrainSettings, loaded: LoadedBase) -> None:
    """Add to ``adapter_config.json``, for every adapter type, the settings that inference must repeat."""
    file = folder / CONFIG_FILE
    config = json.loads(file.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = loaded.name
    config["chat_template"] = settings.template
    config["image_fit"] = settings.image_fit
    config["base_fingerprint"] = loaded.fingerprint
    config.setdefault("visual_tokens", "patches")
    file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def enable_checkpointing(model: Any) -> None:
    """Turn on gradient checkpointing.

    The reentrant kind would not work: it needs inputs that require a gradient, and those of a frozen base do not.
    """
    options = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # the method's name since transformers 5.20
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def count_parts(model: nn.Module, part_of: Mapping[str, str]) -> dict[str, int]:
    """Count the trained parameters by part, in the order of `PARTS`; parts without trained parameters are omitted."""
    parts = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        if name in part_of:
            parts[part_of[name]] += parameter.numel()
    return {part: count for part, count in parts.items() if count}


def learning_rates(settings: TrainSettings) -> dict[str, float]:
    """Return the learning rate of every part for which one is set."""
    rates = {
        "visual_prompts": settings.visual_lr,
        "textual_prompts": settings.textual_lr,
        "interaction": settings.interaction_lr,
    }
    return {part: rate for part, rate in rates.items() if rate is not None}
