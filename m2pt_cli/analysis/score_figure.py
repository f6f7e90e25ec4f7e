"""Figures of scores: a radar of adapters, bars by category."""

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

# Fewer axes make no polygon.
FEWEST_AXES = 3
# More do not stay readable.
MOST_CATEGORIES = 30
# What a category of MME can reach: accuracy and acc+, in percent each.
_MOST_POINTS = 200
_PARTS = ("relations", "classes", "categories")

Blocks = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class HeadlineScore:
    """One number of one run.

    Attributes:
        value: percent of the best possible: right answers, or points of MME.
        interval: 95 % interval in percent, where the block has one.
        n: questions behind it; 0 where the block does not say.
    """

    value: float
    interval: tuple[float, float] | None = None
    n: int = 0


def headline_scores(blocks: Blocks) -> dict[str, HeadlineScore]:
    """One score for each benchmark, two (seen, unseen) for ``demo``.

    Args:
        blocks: ``benchmarks`` of ``results.json``.
    """
    found: dict[str, HeadlineScore | None] = {}
    for name, block in blocks.items():
        if "seen" in block:
            for kind in ("seen", "unseen"):
                found[f"{name} {kind}"] = _share(block[kind], block["intervals"][kind])
        elif "perception" in block:
            points = [part["score"] for part in block["categories"].values() if part["score"] is not None]
            found[name] = HeadlineScore(100 * sum(points) / (_MOST_POINTS * len(points))) if points else None
        else:
            found[name] = _share(block["accuracy"], block.get("interval"), block["n"])
    return {name: score for name, score in found.items() if score is not None}


def category_scores(block: Mapping[str, Any]) -> dict[str, HeadlineScore]:
    """The parts of one benchmark, in its own order; empty where it has none.

    Args:
        block: its block in ``results.json``. Of ``demo``, the parts are the families that training never shows: the
            others are many, and tuning makes them easy.
    """
    found: dict[str, HeadlineScore | None] = {}
    if "tasks" in block:
        tasks = [(name, part) for name, part in block["tasks"].items() if not part["seen"]]
        found = {name: _share(part["accuracy"], part["interval"], part["n"]) for name, part in tasks}
    elif "perception" in block:
        for name, part in block["categories"].items():
            found[name] = None if part["score"] is None else HeadlineScore(100 * part["score"] / _MOST_POINTS)
    elif "splits" in block:
        found = {name: _share(part["accuracy"]) for name, part in block["splits"].items()}
    else:
        parts: Mapping[str, Any] = next((block[key] for key in _PARTS if block.get(key)), {})
        found = {name: _share(part["accuracy"], part["interval"], part["n"]) for name, part in parts.items()}
    return {name: score for name, score in found.items() if score is not None}


def radar_scores(runs: Sequence[Blocks]) -> list[dict[str, HeadlineScore]]:
    """The axes of figure 1 for each run: benchmarks if there are enough of them, else their categories.

    The axes are the same, in the same order, for all runs: those that every run has a score of.
    """
    by_benchmark = common([headline_scores(blocks) for blocks in runs])
    if len(by_benchmark[0]) >= FEWEST_AXES:
        return by_benchmark
    by_category = common([_all_categories(blocks) for blocks in runs])
    return by_category if len(by_category[0]) >= FEWEST_AXES else by_benchmark


def common(
    runs: Sequence[Mapping[str, HeadlineScore]], *, most: int = MOST_CATEGORIES
) -> list[dict[str, HeadlineScore]]:
    """The scores that all runs have; of more than ``most``, those with the most questions."""
    names = [name for name in runs[0] if all(name in run for run in runs)]
    if len(names) > most:
        kept = set(sorted(names, key=lambda name: -runs[0][name].n)[:most])
        names = [name for name in names if name in kept]
    return [{name: run[name] for name in names} for run in runs]


def _all_categories(blocks: Blocks) -> dict[str, HeadlineScore]:
    label: Callable[[str, str], str] = (lambda bench, name: name) if len(blocks) == 1 else "{}: {}".format
    return {
        label(bench, name): score for bench, block in blocks.items() for name, score in category_scores(block).items()
    }


def _share(share: float | None, interval: Sequence[float] | None = None, n: int = 0) -> HeadlineScore | None:
    if share is None:
        return None
    return HeadlineScore(100 * share, None if interval is None else (100 * interval[0], 100 * interval[1]), n)


# Colour, marker, line and hatch of a run; after the last one they begin again.
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
# Characters a run's name may take in a legend.
_NAME = 44


def plot_kind(file: Path) -> str:
    """``radar`` or ``bars``, as the file's name says; bars where it says neither."""
    return "radar" if "radar" in file.stem.lower() else "bars"


def require_plot_place(file: Path) -> None:
    """Check that a figure may be written to ``file``, before anything is asked.

    Raises:
        SettingsError: another suffix, no such folder, or a file there that is not this command's.
    """
    if file.suffix.lower() not in FIGURE_SUFFIXES:
        raise SettingsError(f"--plot {file}: a figure ends in {', '.join(FIGURE_SUFFIXES)}", "--plot radar.png")
    if not file.parent.is_dir():
        raise SettingsError(f"--plot {file}: there is no folder {file.parent}", "make the folder, or name another file")
    if file.exists() and (not file.is_file() or _PROGRAM.encode() not in file.read_bytes()):
        raise SettingsError(f"--plot {file} exists and is no figure of m2pt eval", "name another file")


def draw_scores(runs: Mapping[str, Blocks], file: Path) -> str | None:
    """Draw the scores of several runs and write the figure, whole or not at all.

    Args:
        runs: ``benchmarks`` of ``results.json``, by name of the run.
        file: PNG, SVG or PDF by its suffix; radar or bars by its name (`plot_kind`).

    Returns:
        What the user should know of the figure: bars in place of a radar, say. None if it is as asked.
    """
    note = None
    figure = None
    if plot_kind(file) == "radar":
        figure = radar(runs)
        if figure is None:
            note = f"a radar needs {FEWEST_AXES} scores that all runs have: {file} shows bars"
    save_figure(figure or bars(runs), file, program=_PROGRAM)
    return note


def radar(runs: Mapping[str, Blocks]) -> Figure | None:
    """Figure 1 of the paper: an axis per benchmark, or per category of a single one; a polygon per run.

    Every axis goes from 0 to 100 %, so that polygons of different figures can be compared. None for less than three
    axes.
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
        axes.plot([*angles, angles[0]], [*values, values[0]], line, color=colour, marker=marker, label=_named(run))
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


def bars(runs: Mapping[str, Blocks]) -> Figure:
    """Bars by category, a panel for each benchmark, a bar per run; whiskers are 95 % intervals.

    A group of bars for the whole benchmark comes first. Of more than 30 categories those with the most questions are
    shown.
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


def _panels(runs: Mapping[str, Blocks]) -> list[tuple[str, list[dict[str, HeadlineScore]]]]:
    """Title and scores (one mapping per run) of every benchmark that all runs have."""
    first, *others = runs.values()
    panels = []
    for bench in first:
        if not all(bench in blocks for blocks in others):
            continue
        # The whole benchmark first, then its parts.
        heads = [headline_scores({bench: blocks[bench]}) for blocks in runs.values()]
        parts = [category_scores(blocks[bench]) for blocks in runs.values()]
        shown, all_parts = common(parts), len(set.intersection(*map(set, parts)))
        left = all_parts > len(shown[0])
        title = f"{bench} ({len(shown[0])} of {all_parts} categories)" if left else bench
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
        axes.barh(places, values, height * 0.92, color=colour, hatch=hatch, edgecolor="white", label=_named(run))
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


def _named(run: str) -> str:
    return _plain(textwrap.fill(run, _NAME))


def _plain(text: str) -> str:
    """Text that matplotlib takes as it is: a dollar begins no formula, an underscore in front hides no label."""
    text = text.replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text
