"""The events that training reports; the library itself prints nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Notice:
    """A line for the user: where files are written, what was read, what was resumed."""

    text: str
    is_warning: bool = False


@dataclass(frozen=True)
class Started:
    """Everything is loaded and the first step follows.

    Attributes:
        steps: optimiser steps of the whole run, ``first_step`` of them done by earlier starts.
        losses: losses of those ``first_step`` steps.
        samples: training samples; passes: epochs over them; validation: held-out samples.
        trainable: trained parameters of a base of ``total`` parameters.
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
    passes: float
    losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class Step:
    """One optimiser step.

    Attributes:
        loss: mean over the supervised tokens of the step's batch.
        tokens: real tokens (no padding) of the run so far, ``seconds`` the wall time they took, over all its starts.
        memory: peak bytes: of the device on CUDA, of the process elsewhere; None if unknown.
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
    """The loss on the validation samples after a step; ``is_best``: lower than all before it."""

    step: int
    loss: float
    is_best: bool


@dataclass(frozen=True)
class Saved:
    """A checkpoint is complete on disk."""

    step: int
    folder: Path


@dataclass(frozen=True)
class Finished:
    """The run directory is complete.

    Attributes:
        loss: mean over the last tenth of the steps; validation: the best validation loss.
        best_step: the step whose weights were kept; the last one without validation.
        parts: trained parameters by part (visual_prompts, textual_prompts, interaction, ...).
        bytes: size of the saved weights.
        seconds, tokens: of the whole run, over all its starts.
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
    """Drop an event."""
