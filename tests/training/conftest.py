"""Fixtures of the training tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.tiny_base import write_tiny_base
from fixtures.toy_samples import ToySample, collate, toy_samples, write_data
from torch import nn

from m2pt_cli.runtime.signals import StopRequest
from m2pt_cli.settings import TrainSettings
from m2pt_cli.training.callbacks import Flow, Recorder
from m2pt_cli.training.events import Event
from m2pt_cli.training.setup import training_arguments
from m2pt_cli.training.trainer import M2PTTrainer


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., M2PTTrainer]:
    """Build a trainer of ``model``; ``options`` are settings of the run."""

    def make(
        model: nn.Module,
        *,
        run_dir: Path = tmp_path,
        samples: list[ToySample] | None = None,
        validation: list[ToySample] | None = None,
        request: StopRequest | None = None,
        events: Callable[[Event], None] = lambda event: None,
        learning_rates: dict[str, float] | None = None,
        steps: int = 6,
        **options: Any,
    ) -> M2PTTrainer:
        values: dict[str, Any] = {"batch_size": 2, "accumulation": 2, "learning_rate": 0.01, "warmup": 0.2, "keep": 2}
        settings = TrainSettings(data=("toy",), **(values | options))
        samples = toy_samples(10) if samples is None else samples
        flow, recorder = Flow(request or StopRequest()), Recorder(run_dir, events)
        trainer = M2PTTrainer(
            model=model,
            args=training_arguments(
                settings,
                run_dir=run_dir,
                steps=steps,
                validates=bool(validation),
                device=torch.device("cpu"),
                autocast=None,
            ),
            run_dir=run_dir,
            train_samples=samples,
            validation_samples=validation,
            collator=collate,
            lengths=[len(ids) for ids, _, _ in samples],
            part_of={name: name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad},
            learning_rates=learning_rates or {},
            keep=settings.keep or 2,
            callbacks=[flow, recorder],
        )
        flow.trainer = recorder.trainer = trainer
        return trainer

    return make


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny base."""
    return write_tiny_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    """A LLaVA JSON file of 12 samples, with their images in the same folder."""
    return write_data(tmp_path / "data")
