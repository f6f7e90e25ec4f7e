"""``loss.png``: the loss of every step, its running mean and the validation losses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

# The running mean looks back over this share of the run.
_WINDOW = 0.05


def plot_loss(rows: Sequence[dict[str, Any]], file: Path, *, title: str) -> None:
    """Draw the rows of ``metrics.jsonl``.

    Args:
        rows: with ``step`` and either ``loss`` or ``validation_loss``.
        file: the PNG to write.
    """
    # The object interface: no pyplot, so no global state, no display and no backend to choose.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    training = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    validation = [(row["step"], row["validation_loss"]) for row in rows if "validation_loss" in row]
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if training:
        steps, losses = zip(*training, strict=True)
        axes.plot(steps, losses, color="#9ecae1", linewidth=0.8, label="each step")
        axes.plot(steps, running_mean(losses), color="#08519c", linewidth=1.8, label="running mean")
    if validation:
        axes.plot(*zip(*validation, strict=True), color="#d94801", marker="o", markersize=3, label="validation")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (mean over supervised tokens)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if training or validation:
        axes.legend(frameon=False)
    figure.savefig(file, format="png")


def running_mean(values: Sequence[float], share: float = _WINDOW) -> list[float]:
    """The mean of each value and those before it, over a window of ``share`` of all values."""
    window = max(1, round(len(values) * share))
    means = []
    total = 0.0
    for index, value in enumerate(values):
        total += value
        if index >= window:
            total -= values[index - window]
        means.append(total / min(index + 1, window))
    return means
