"""Figures of scores: a radar chart of runs, or bars by category."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2pt_cli.analysis.figure_file import save_figure
from m2pt_cli.errors import SettingsError
from m2pt_cli.settings.base import FIGURE_SUFFIXES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A polygon needs three axes.
FEWEST_AXES = 3
# More categories are not readable.
MOST_CATEGORIES = 30
# The best score of an MME category: accuracy and acc+, 100 each.
_MAX_POINTS = 200
_PARTS = ("relations", "classes", "categories")

# The results of each benchmark, as in ``benchmarks`` of results.json.
Benchmarks = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class HeadlineScore:
    """One score of one run.

    Attributes:
        value: percent of right answers, or percent of the possible points of MME.
        interval: 95 % interval in percent, if the results have one.
        n: number of questions; 0 if the results do not give it.
    """

    value: float
    interval: tuple[float, float] | None = None
    n: int = 0


def headline_scores(benchmarks: Benchmarks) -> dict[str, HeadlineScore]:
    """Return one score for each benchmark, two (seen, unseen) for ``demo``.

    Args:
        benchmarks: ``benchmarks`` of ``results.json``.
    """
    found: dict[str, HeadlineScore | None] = {}
    for name, results in benchmarks.items():
        if "seen" in results:
            for kind in ("seen", "unseen"):
                found[f"{name} {kind}"] = _score(results[kind], results["intervals"][kind])
        elif "perception" in results:
            points = [part["score"] for part in results["categories"].values() if part["score"] is not None]
            found[name] = HeadlineScore(100 * sum(points) / (_MAX_POINTS * len(points))) if points else None
        else:
            found[name] = _score(results["accuracy"], results.get("interval"), results["n"])
    return {name: score for name, score in found.items() if score is not None}


def category_scores(results: Mapping[str, Any]) -> dict[str, HeadlineScore]:
    """Return the scores of a benchmark's categories in its own order; empty if it has none.

    Args:
        results: its results in ``results.json``. For ``demo``, only the unseen families are categories: the seen ones
            are many, and easy after tuning.
    """
    found: dict[str, HeadlineScore | None] = {}
    if "tasks" in results:
        tasks = [(name, part) for name, part in results["tasks"].items() if not part["seen"]]
        found = {name: _score(part["accuracy"], part["interval"], part["n"]) for name, part in tasks}
    elif "perception" in results:
        for name, part in results["categories"].items():
            found[name] = None if part["score"] is None else HeadlineScore(100 * part["score"] / _MAX_POINTS)
    elif "splits" in results:
        found = {name: _score(part["accuracy"]) for name, part in results["splits"].items()}
    else:
        parts: Mapping[str, Any] = next((results[key] for key in _PARTS if results.get(key)), {})
        found = {name: _score(part["accuracy"], part["interval"], part["n"]) for name, part in parts.items()}
    return {name: score for name, score in found.items() if score is not None}


def radar_scores(runs: Sequence[Benchmarks]) -> list[dict[str, HeadlineScore]]:
    """Return the axes of the radar for each run: benchmarks if there are enough of them, else their categories.

    All runs have the same axes in the same order: those for which every run has a score.
    """
    by_benchmark = common([headline_scores(benchmarks) for benchmarks in runs])
    if len(by_benchmark[0]) >= FEWEST_AXES:
        return by_benchmark
    by_category = common([_all_categories(benchmarks) for benchmarks in runs])
    return by_category if len(by_category[0]) >= FEWEST_AXES else by_benchmark


def common(
    runs: Sequence[Mapping[str, HeadlineScore]], *, most: int = MOST_CATEGORIES
) -> list[dict[str, HeadlineScore]]:
    """Return the scores that all runs have; of more than ``most``, those with the most questions."""
    names = [name for name in runs[0] if all(name in run for run in runs)]
    if len(names) > most:
        kept = set(sorted(names, key=lambda name: -runs[0][name].n)[:most])
        names = [name for name in names if name in kept]
    return [{name: run[name] for name in names} for run in runs]


def _all_categories(benchmarks: Benchmarks) -> dict[str, HeadlineScore]:
    label: Callable[[str, str], str] = (lambda bench, name: name) if len(benchmarks) == 1 else "{}: {}".format
    return {
        label(bench, name): score
        for bench, results in benchmarks.items()
        for name, score in category_scores(results).items()
    }


def _score(fraction: float | None, interval: Sequence[float] | None = None, n: int = 0) -> HeadlineScore | None:
    if fraction is None:
        return None
    return HeadlineScore(100 * fraction, None if interval is None else (100 * interval[0], 100 * interval[1]), n)


# Colour, marker, line style and hatch of the runs, repeated if there are more runs.
_STYLES = (
    ("#0072B2", "o", "-", ""),
    ("#E69F00", "^", "--", "//"),
    ("#009E73", "s", "-.", ".."),
    ("#CC79A7", "D", ":", "xx"),
    ("#56B4E9", "v", "-", "\\\\"),
    ("#D55E00", "P", "--", "++"),
    ("#666666", "X", "-.", "oo"),
)
_PROGRAM = "m2pt eval"
_UNIT = "right answers, % (MME: % of its points)"
# Width of a run's name in a legend, in characters.
_LEGEND_WIDTH = 44


def plot_kind(file: Path) -> str:
    """Return ``radar`` if the file's name contains it, else ``bars``."""
    return "radar" if "radar" in file.stem.lower() else "bars"


def require_plot_place(file: Path) -> None:
    """Check that a figure may be written to ``file``.

    Raises:
        SettingsError: unknown suffix, no such folder, or the file exists and was not written by this command.
    """
    if file.suffix.lower() not in FIGURE_SUFFIXES:
        raise SettingsError(f"--plot {file}: a figure ends in {', '.join(FIGURE_SUFFIXES)}", "--plot radar.png")
    if not file.parent.is_dir():
        raise SettingsError(f"--plot {file}: there is no folder {file.parent}", "make the folder, or name another file")
    if file.exists() and (not file.is_file() or _PROGRAM.encode() not in file.read_bytes()):
        raise SettingsError(f"--plot {file} exists and is no figure of m2pt eval", "name another file")


def draw_scores(runs: Mapping[str, Benchmarks], file: Path) -> str | None:
    """Draw the scores of several runs and write the figure atomically.

    Args:
        runs: ``benchmarks`` of ``results.json``, by name of the run.
        file: PNG, SVG or PDF by its suffix; radar or bars by its name (`plot_kind`).

    Returns:
        A message to the user if bars were drawn instead of a radar, else None.
    """
    note = None
    figure = None
    if plot_kind(file) == "radar":
        figure = radar(runs)
        if figure is None:
            note = f"a radar needs {FEWEST_AXES} scores that all runs have: {file} shows bars"
    save_figure(figure or bars(runs), file, program=_PROGRAM)
    return note


def radar(runs: Mapping[str, Benchmarks]) -> Figure | None:
    """Draw figure 1 of the paper: one axis per benchmark or category, one polygon per run.

    Every axis goes from 0 to 100 %, so that different figures can be compared. Returns None if there are fewer than
    three axes.
    """
    scores = radar_scores(list(runs.values()))
    names = list(scores[0])
    if len(names) < FEWEST_AXES:
        return None
    angles = [2 * math.pi * index / len(names) for index in range(len(names))]
    figure = _figure(9.6, 7.2)
    axes: Any = figure.add_subplot(projection="polar")
    axes.set_theta_offset(math.pi / 2)
    axes.set_theta_direction(-1)
    for number, (run, found) in enumerate(zip(runs, scores, strict=True)):
        colour, marker, line, _ = _STYLES[number % len(_STYLES)]
        values = [score.value for score in found.values()]
        label = _legend_label(run)
        axes.plot([*angles, angles[0]], [*values, values[0]], line, color=colour, marker=marker, label=label)
        axes.fill(angles, values, color=colour, alpha=0.08)
    size = 11 if len(names) <= 12 else 9 if len(names) <= 24 else 7.5
    axes.set_xticks(angles, [_plain(name) for name in names], fontsize=size)
    for label, angle in zip(axes.get_xticklabels(), angles, strict=True):
        side = math.sin(angle)
        label.set_horizontalalignment("center" if abs(side) < 0.01 else "left" if side > 0 else "right")
    axes.set_ylim(0, 100)
    axes.set_yticks([25, 50, 75, 100], ["25", "50", "75", "100 %"], fontsize=9, color="#444444")
    axes.set_rlabel_position(180 / len(names))
    axes.set_title(_UNIT, fontsize=11, pad=32)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    return figure


def bars(runs: Mapping[str, Benchmarks]) -> Figure:
    """Draw bars by category: one panel per benchmark, one bar per run, 95 % intervals as whiskers.

    The first group of bars is the whole benchmark. Of more than 30 categories, those with the most questions are shown.
    """
    panels = _panels(runs)
    thickness = 0.17 if len(runs) <= 3 else 0.13
    rows = [len(scores[0]) * (len(runs) + 0.6) for _, scores in panels]
    heights = [0.9 + thickness * max(count, 2) for count in rows]
    figure = _figure(8.4, 0.5 + sum(heights) + 0.25 * len(runs))
    cells: Any = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
    for (title, scores), axes in zip(panels, cells[:, 0], strict=True):
        _draw_bars(axes, title, list(runs), scores)
    whiskers = any(score.interval for _, scores in panels for found in scores for score in found.values())
    cells[-1, 0].set_xlabel(_UNIT + ("; lines: 95 % interval" if whiskers else ""), fontsize=10)
    handles, labels = cells[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", frameon=False, fontsize=10)
    return figure


def _panels(runs: Mapping[str, Benchmarks]) -> list[tuple[str, list[dict[str, HeadlineScore]]]]:
    """Return title and scores (one mapping per run) of every benchmark that all runs have."""
    first, *others = runs.values()
    panels = []
    for bench in first:
        if not all(bench in benchmarks for benchmarks in others):
            continue
        # The score of the whole benchmark comes first, then its categories.
        heads = [headline_scores({bench: benchmarks[bench]}) for benchmarks in runs.values()]
        parts = [category_scores(benchmarks[bench]) for benchmarks in runs.values()]
        shown, all_parts = common(parts), len(set.intersection(*map(set, parts)))
        is_cut = all_parts > len(shown[0])
        title = f"{bench} ({len(shown[0])} of {all_parts} categories)" if is_cut else bench
        scores = [{**head, **part} for head, part in zip(common(heads), shown, strict=True)]
        if scores[0]:
            panels.append((title, scores))
    return panels


def _draw_bars(axes: Any, title: str, runs: Sequence[str], scores: Sequence[Mapping[str, HeadlineScore]]) -> None:
    names = list(scores[0])
    height = 0.84 / len(runs)
    for number, (run, found) in enumerate(zip(runs, scores, strict=True)):
        colour, _, _, hatch = _STYLES[number % len(_STYLES)]
        places = [index - 0.42 + (number + 0.5) * height for index in range(len(names))]
        values = [found[name].value for name in names]
        axes.barh(places, values, height * 0.92, color=colour, hatch=hatch, edgecolor="white", label=_legend_label(run))
        for place, value, name in zip(places, values, names, strict=True):
            interval = found[name].interval
            if interval is not None:
                axes.plot(interval, [place, place], color="#222222", linewidth=1.1, solid_capstyle="butt")
            end = value if interval is None else max(value, interval[1])
            axes.text(min(end, 100) + 0.8, place, f"{value:.1f}", va="center", fontsize=7.5, color="#222222")
    axes.set_yticks(range(len(names)), [_plain(name) for name in names], fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 106)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_title(_plain(title), fontsize=11, loc="left", fontweight="bold")


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _legend_label(run: str) -> str:
    return _plain(textwrap.fill(run, _LEGEND_WIDTH))


def _plain(text: str) -> str:
    """Escape text for matplotlib, which would parse dollars as formulas and hide labels with a leading underscore."""
    text = text.replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text
