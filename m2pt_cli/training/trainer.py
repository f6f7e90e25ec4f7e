"""A `transformers.Trainer` for instruction tuning of a LLaVA.

It overrides the loss, the sampling order, the learning rates and the checkpoints. The training loop, gradient
accumulation, clipping, schedule, devices, distribution and trackers are those of the base class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, TrainerState

from m2pt_cli.errors import DivergenceError
from m2pt_cli.training.checkpoints import load_weights, remove_old, save_weights, staged
from m2pt_cli.training.loss import IGNORED, is_finite, supervised_loss
from m2pt_cli.training.run_dir import copy_run
from m2pt_cli.training.sampler import LengthGroupedSampler


class M2PTTrainer(Trainer):
    """Trains the parameters of ``model`` that require a gradient.

    Args:
        model: a PEFT model, or a LLaVA for full fine-tuning.
        args: see `m2pt_cli.training.setup.training_arguments`.
        run_dir: the folder of the checkpoints.
        train_samples, validation_samples: samples that ``collator`` accepts; ``validation_samples`` may be None.
        lengths: number of tokens of each training sample.
        part_of: maps the name of every trained parameter to its part (``visual_prompts``, ``interaction``, ...).
        learning_rates: learning rates by part; other parts use ``args.learning_rate``.
        keep: number of checkpoints to keep.
    """

    model: nn.Module

    def __init__(
        self,
        *,
        model: nn.Module,
        args: TrainingArguments,
        run_dir: Path,
        train_samples: Dataset[Any],
        validation_samples: Dataset[Any] | None,
        collator: Any,
        lengths: Sequence[int],
        part_of: Mapping[str, str],
        learning_rates: Mapping[str, float],
        keep: int,
        callbacks: Sequence[TrainerCallback],
    ) -> None:
        self.run_dir = run_dir
        self.lengths = lengths
        self.part_of = part_of
        self.learning_rates = learning_rates
        self.keep = keep
        self.tokens_seen = 0
        self.skipped = 0
        self.sampler: LengthGroupedSampler | None = None
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_samples,
            eval_dataset=validation_samples,
            data_collator=collator,
            callbacks=list(callbacks),
        )
        self.remove_callback(PrinterCallback)  # prints every log to stdout
        # `compute_loss` already divides by the supervised tokens of all micro-batches; Trainer must not divide again.
        self.model_accepts_loss_kwargs = True

    # ---- loss ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute the mean loss over the supervised tokens of the whole effective batch; see `supervised_loss`."""
        if return_outputs:
            raise NotImplementedError("the outputs of a training step are not kept")
        self.skipped += int(inputs.pop("skipped", 0))
        self.tokens_seen += int(inputs["attention_mask"].sum())
        loss = supervised_loss(model, inputs, num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # The divisor counts the tokens of all processes, and DistributedDataParallel averages the gradients again.
            loss = loss * self.accelerator.num_processes
        return loss

    def training_step(self, *arguments: Any, **keywords: Any) -> Tensor:
        loss = super().training_step(*arguments, **keywords)
        if not is_finite(loss):
            raise DivergenceError(
                f"the loss became {float(loss)} at step {self.state.global_step + 1}; "
                "the weights of that step were not kept",
                "lower --learning-rate (or --visual-lr, --textual-lr, --interaction-lr), or raise --warmup",
            )
        return loss

    def evaluate(self, *arguments: Any, **keywords: Any) -> dict[str, float]:
        """Return ``{"eval_loss"}``: the mean loss over all supervised tokens of the validation samples.

        Raises:
            DivergenceError: the validation loss is NaN or infinite.
        """
        # Each process evaluates its own samples with the unwrapped model: none is counted twice, no process waits.
        rank, processes = self.args.process_index, self.args.world_size
        loader = DataLoader(
            self.eval_dataset,  # type: ignore[arg-type]
            batch_size=self.args.per_device_eval_batch_size,
            sampler=range(rank, len(self.eval_dataset), processes),  # type: ignore[arg-type]
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )
        totals = torch.zeros(2, dtype=torch.float64)
        self.model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            for batch in loader:
                inputs = self._prepare_inputs(batch)
                inputs.pop("skipped", None)
                tokens = int((inputs["labels"][:, 1:] != IGNORED).sum())
                totals += torch.tensor([supervised_loss(self.model, inputs).item() * tokens, tokens])
        self.model.train()
        if processes > 1:
            totals = self.accelerator.reduce(totals.to(self.args.device), "sum").cpu()
        total, tokens = totals.tolist()
        metrics = {"eval_loss": total / tokens}
        if not math.isfinite(metrics["eval_loss"]):
            raise DivergenceError(
                f"the validation loss became {metrics['eval_loss']} at step {self.state.global_step}",
                "lower --learning-rate, or raise --warmup",
            )
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # ---- order, learning rates, log ----

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int]:
        unit = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        self.sampler = LengthGroupedSampler(self.lengths, unit=unit, seed=self.args.seed)
        return self.sampler

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create AdamW: a learning rate for each of `PARTS`, weight decay on the weights that transformers decays."""
        if self.optimizer is None:
            trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
            decayed = set(self.get_decay_parameter_names(self.model))
            groups: dict[tuple[float, float], list[nn.Parameter]] = {}
            for name, parameter in trained.items():
                rate = self.learning_rates.get(self.part_of[name], self.args.learning_rate)
                decay = self.args.weight_decay if name in decayed else 0.0
                groups.setdefault((rate, decay), []).append(parameter)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = optimizer_class(
                [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()],
                **options,
            )
        return self.optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log without keeping a history: ``metrics.jsonl`` has it, and every checkpoint would repeat it."""
        super().log(logs, start_time)
        self.state.log_history.clear()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: the base class's estimate counts all frozen parameters at every step, and is not shown."""
        return 0

    # ---- checkpoints ----

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = self.run_dir / f"checkpoint-{self.state.global_step}"
        if self.args.world_size == 1:
            with staged(folder) as partial:
                self._write_state(partial)
        else:
            self._save_from_all(folder)
        if self.args.should_save:
            remove_old(folder.parent, keep=self.keep, best_step=self.state.best_global_step)

    def _save_from_all(self, folder: Path) -> None:
        # Every process saves its own random state into the folder that the first process creates.
        wait = self.accelerator.wait_for_everyone
        if self.args.should_save:
            with staged(folder) as partial:
                wait()
                self._write_state(partial)
                wait()
        else:
            wait()
            self._save_rng_state(str(folder.with_name(f".{folder.name}.partial")))
            wait()
        wait()

    def _write_state(self, folder: Path) -> None:
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
                raise DivergenceError(
                    f"{name} became NaN or infinite by step {self.state.global_step}; the checkpoint before is kept",
                    "lower --learning-rate (or --visual-lr, --textual-lr, --interaction-lr), or raise --warmup",
                )
        save_weights(self.accelerator.unwrap_model(self.model), folder)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))
        self.state.save_to_json(str(folder / "trainer_state.json"))
        copy_run(self.run_dir, folder)

    def restore(self, folder: Path) -> None:
        """Load weights and trainer state from a checkpoint without continuing the training."""
        load_weights(self.accelerator.unwrap_model(self.model), folder)
        self.state = TrainerState.load_from_json(str(folder / "trainer_state.json"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_weights(self.accelerator.unwrap_model(self.model), Path(resume_from_checkpoint))
