"""Events that a training run reports to its caller; the library itself prints nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Notice:
    """A message for the user: where files are written, what was read, what was resumed."""

    text: str
    is_warning: bool = False


@dataclass(frozen=True)
class Started:
    """Everything is loaded and the first step is next.

    Attributes:
        steps: optimiser steps of the whole run.
        first_step: steps already done before this run was resumed.
        samples, validation: number of training and of held-out samples.
        trainable: trained parameters.
        total: parameters of the base.
    """

    output_dir: Path
    method: str
    base: str
    device: str
    steps: int
    first_step: int
    samples: int
    validation: int
    trainable: int
    total: int


@dataclass(frozen=True)
class Step:
    """One optimiser step.

    Attributes:
        loss: mean over the supervised tokens of the step's batch.
        tokens: tokens without padding processed since this process started.
        seconds: wall time since training started in this process.
        memory: peak bytes allocated on a CUDA device, else resident in the process; None if unknown.
    """

    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    seconds: float
    memory: int | None


@dataclass(frozen=True)
class Validated:
    """The loss on the validation samples after a step; ``is_best`` means lower than every earlier one."""

    step: int
    loss: float
    is_best: bool


@dataclass(frozen=True)
class Saved:
    """A checkpoint was written completely."""

    step: int
    folder: Path


@dataclass(frozen=True)
class Finished:
    """The run directory is complete.

    Attributes:
        best_step: the step whose weights were kept: the best one with validation samples, else the last.
        loss: mean training loss over the last tenth of the steps.
        validation: the best validation loss.
        parts: trained parameters by part (visual_prompts, textual_prompts, interaction, ...).
        total: parameters of the base.
        bytes: size of the saved weights.
    """

    output_dir: Path
    steps: int
    best_step: int
    loss: float | None
    validation: float | None
    parts: dict[str, int] = field(default_factory=dict)
    total: int = 0
    seconds: float = 0.0
    tokens: int = 0
    memory: int | None = None
    bytes: int = 0


Event = Notice | Started | Step | Validated | Saved | Finished
Events = Callable[[Event], None]


def ignore(event: Event, /) -> None:
    """Discard an event: the default when a caller wants none."""
