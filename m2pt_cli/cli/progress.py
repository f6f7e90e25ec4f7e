"""Progress display for the Python API: what the commands show on stderr, for scripts and notebooks."""

from __future__ import annotations

from typing import Self

from m2pt_cli.cli.eval_view import EvalProgress
from m2pt_cli.cli.output import Output
from m2pt_cli.cli.train_view import TrainProgress
from m2pt_cli.evaluation import events as evaluation
from m2pt_cli.training.events import Event


class ShowProgress:
    """Show the progress of `train`, `evaluate` and `attention_map`: bars on a terminal, occasional lines elsewhere.

    Example:
        >>> train(TrainSettings(base="nano", data="demo"), progress=show_progress())
    """

    def __init__(self) -> None:
        self._output = Output()
        self._training = TrainProgress(self._output)
        self._evaluation = EvalProgress(self._output)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._training.__exit__(*error)
        self._evaluation.__exit__(*error)

    def __call__(self, event: Event | evaluation.Notice | evaluation.Progress | str, /) -> None:
        if isinstance(event, str):
            self._output.status(event)
        elif isinstance(event, (evaluation.Notice, evaluation.Progress)):
            self._evaluation(event)
        else:
            self._training(event)


def show_progress() -> ShowProgress:
    """Return a progress display to pass as ``progress`` to `train`, `evaluate` and `attention_map`."""
    return ShowProgress()
