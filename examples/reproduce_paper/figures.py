"""The figures: benchmarks as a radar (figure 1), ablations as bars (figure 4), prompt lengths as a heat map.

Colours are Okabe and Ito's colour-blind safe palette; markers, hatches or numbers repeat the information.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from cells import GRID_LENGTHS, Experiment
from columns import Columns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from summary import Results

from m2pt_cli.analysis.score_figure import radar

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
# The polygons of figure 1 other than M²PT's.
POLYGONS = ("lora", "textual", "visual", "lora-small", "full")
BARS = ((BLUE, ""), (ORANGE, "//"), (GREEN, ".."), (PURPLE, "xx"))


def new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_radar(results: Results, found: Experiment, columns: Columns, file: Path) -> None:
    """Draw figure 1: one polygon per method, one axis per benchmark, as ``m2pt eval --plot`` does."""
    runs = {}
    for name in (found.whole.name, *POLYGONS):
        if name not in results:
            continue
        means = {column: results.mean(name, column) for column in columns.benchmarks}
        record = results.one(name)
        runs[f"{record['label']} ({record['percent']:.3g} % trained)"] = {
            column: {"accuracy": mean.value / columns.best(column), "n": 0, "interval": None}
            for column, mean in means.items()
            if mean is not None
        }
    figure = radar(runs)
    if figure is None:
        return
    whole = figure.axes[0].lines[0]
    whole.set_linewidth(3)
    whole.set_zorder(5)
    for polygon in figure.axes[0].patches[1:]:
        polygon.set_alpha(0)
    figure.axes[0].set_title("Right answers by benchmark, % (mean over seeds)", fontsize=12, pad=24)
    figure.savefig(file)


def draw_ablations(results: Results, found: Experiment, columns: Columns, file: Path) -> None:
    """Draw figure 4, ``whole`` and its ablations: bars are means, whiskers standard errors, dots seeds."""
    groups = [name for name in (columns.headline, *columns.others) if results.mean(found.whole.name, name)]
    if len(groups) == 1:
        groups += [name for name in columns.benchmarks if name not in columns.points]
    variants = [one for one in (found.whole, *found.ablations) if one.name in results]
    figure = new_figure(max(8.0, 1.5 * len(groups)), 4.6)
    axes = figure.add_subplot()
    width = 0.8 / len(variants)
    for place, (variant, (colour, hatch)) in enumerate(zip(variants, BARS, strict=False)):
        label = f"{variant.label} (whole)" if variant == found.whole else variant.label
        for index, group in enumerate(groups):
            mean, left = results.mean(variant.name, group), index - 0.4 + (place + 0.5) * width
            if mean is None:
                continue
            factor = 1.0 if group in columns.points else 100.0
            axes.bar(
                left,
                factor * mean.value,
                width * 0.94,
                yerr=None if mean.error is None else factor * mean.error,
                capsize=3,
                color=colour,
                hatch=hatch,
                edgecolor="white",
                label=label if index == 0 else None,
            )
            seeds = list(results.scores(variant.name, group).values())
            offsets = [left + width * 0.5 * ((n + 0.5) / len(seeds) - 0.5) for n in range(len(seeds))]
            axes.plot(offsets, [factor * one for one in seeds], "o", color="black", markersize=2.4, zorder=3)
    axes.set_xticks(range(len(groups)), groups, fontsize=11)
    axes.set_ylabel("right answers, %", fontsize=11)
    axes.set_ylim(0, 100)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_title("M²PT without one of its parts (bars: mean, whiskers: standard error, dots: seeds)", fontsize=12)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=len(variants), frameon=False, fontsize=10)
    figure.savefig(file)


def draw_grid(results: Results, columns: Columns, file: Path, seeds: Sequence[int]) -> None:
    """Draw the headline score by numbers of visual and textual prompts, with the same seeds in every field."""
    values = [
        [grid_value(results, visual, textual, columns.headline, seeds) for textual in GRID_LENGTHS]
        for visual in GRID_LENGTHS
    ]
    factor = 1.0 if columns.headline in columns.points else 100.0
    shown = [[math.nan if one is None else factor * one for one in row] for row in values]
    figure = new_figure(5.6, 4.6)
    axes = figure.add_subplot()
    known = [one for row in shown for one in row if not math.isnan(one)]
    middle = (min(known) + max(known)) / 2
    image = axes.imshow(shown, cmap="cividis", origin="lower", aspect="auto")
    for y, row in enumerate(shown):
        for x, value in enumerate(row):
            text = "–" if math.isnan(value) else f"{value:.1f}"
            axes.text(x, y, text, ha="center", va="center", fontsize=13, color="white" if value < middle else "black")
    axes.set_xticks(range(len(GRID_LENGTHS)), [str(length) for length in GRID_LENGTHS], fontsize=11)
    axes.set_yticks(range(len(GRID_LENGTHS)), [str(length) for length in GRID_LENGTHS], fontsize=11)
    axes.set_xlabel("textual prompts per layer", fontsize=11)
    axes.set_ylabel("visual prompts per layer", fontsize=11)
    unit = "points" if columns.headline in columns.points else "right answers, %"
    noun = "seed" if len(seeds) == 1 else "seeds"
    axes.set_title(f"Prompt lengths: {columns.headline} (mean of {len(seeds)} {noun})", fontsize=12)
    figure.colorbar(image, ax=axes, label=unit)
    figure.savefig(file)


def grid_value(results: Results, visual: int, textual: int, column: str, seeds: Sequence[int]) -> float | None:
    """Return the mean over exactly these seeds; None if one is missing."""
    scores = results.scores(f"m2pt-{visual}-{textual}", column)
    if not seeds or any(seed not in scores for seed in seeds):
        return None
    return math.fsum(scores[seed] for seed in seeds) / len(seeds)
