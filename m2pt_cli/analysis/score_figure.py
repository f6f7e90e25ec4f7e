"""Score figures: a radar chart of adapters, and bar charts by category."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2pt_cli.analysis.figure_file import save_figure, svg_of
from m2pt_cli.analysis.figure_text import cut_middle, readable
from m2pt_cli.errors import SettingsError
from m2pt_cli.settings.base import FIGURE_SUFFIXES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A polygon needs at least three axes.
FEWEST_AXES = 3
# More categories are not readable.
MOST_CATEGORIES = 30
# The maximum of an MME category: accuracy plus acc+, in percent each.
_MOST_POINTS = 200
_PARTS = ("relations", "classes", "categories")
# Chance level in percent: yes or no, three classes, ten, a hundred. In MME a random answer is right half of the time
# and both of a pair a quarter: 75 of 200 points. For demo the block holds the score of the majority answers.
_CHANCE = {"pope": 50.0, "vsr": 50.0, "snli-ve": 100 / 3, "cifar10": 10.0, "cifar100": 1.0, "mnist": 10.0, "mme": 37.5}

Blocks = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class HeadlineScore:
    """One score of one run.

    Attributes:
        value: percent of the maximum: right answers, or points of MME.
        interval: 95 % interval in percent, if the block has one.
        n: number of questions; 0 if the block does not state it.
        guess: chance level in percent: demo's majority answer, elsewhere a random one; None if unknown.
    """

    value: float
    interval: tuple[float, float] | None = None
    n: int = 0
    guess: float | None = None


def headline_scores(blocks: Blocks) -> dict[str, HeadlineScore]:
    """Return one score for each benchmark, two (seen, unseen) for ``demo``.

    Args:
        blocks: ``benchmarks`` of ``results.json``.
    """
    found: dict[str, HeadlineScore | None] = {}
    for name, block in blocks.items():
        chance = _CHANCE.get(name)
        if "seen" in block:
            for kind in ("seen", "unseen"):
                n = sum(task["n"] for task in block["tasks"].values() if task["seen"] is (kind == "seen"))
                guess = block["majority"][kind]
                found[f"{name} {kind}"] = _share(block[kind], block["intervals"][kind], n, _percent(guess))
        elif "perception" in block:
            points = [part["score"] for part in block["categories"].values() if part["score"] is not None]
            value = 100 * sum(points) / (_MOST_POINTS * len(points)) if points else 0.0
            found[name] = HeadlineScore(value, None, block["n"], chance) if points else None
        else:
            found[name] = _share(block["accuracy"], block.get("interval"), block["n"], chance)
    return {name: score for name, score in found.items() if score is not None}


def category_scores(block: Mapping[str, Any], bench: str = "") -> dict[str, HeadlineScore]:
    """Return the category scores of one benchmark, in its own order; empty if it has no categories.

    Args:
        block: its block in ``results.json``. For ``demo`` the categories are the families unseen in training: the
            others are many, and tuning makes them easy.
        bench: its name, which determines the chance level.
    """
    chance = _CHANCE.get(bench)
    found: dict[str, HeadlineScore | None] = {}
    if "tasks" in block:
        tasks = [(name, part) for name, part in block["tasks"].items() if not part["seen"]]
        found = {
            name: _share(part["accuracy"], part["interval"], part["n"], _percent(part["majority"]))
            for name, part in tasks
        }
    elif "perception" in block:
        for name, part in block["categories"].items():
            points = part["score"]
            found[name] = None if points is None else HeadlineScore(100 * points / _MOST_POINTS, guess=chance)
    elif "splits" in block:
        found = {name: _share(part["accuracy"], guess=chance) for name, part in block["splits"].items()}
    else:
        parts: Mapping[str, Any] = next((block[key] for key in _PARTS if block.get(key)), {})
        found = {name: _share(part["accuracy"], part["interval"], part["n"], chance) for name, part in parts.items()}
    return {name: score for name, score in found.items() if score is not None}


def radar_scores(runs: Sequence[Blocks]) -> list[dict[str, HeadlineScore]]:
    """Return the radar axes of each run: benchmarks if there are enough of them, else their categories.

    The axes are the same, in the same order, for all runs: those for which every run has a score.
    """
    by_benchmark = common([headline_scores(blocks) for blocks in runs])
    if len(by_benchmark[0]) >= FEWEST_AXES:
        return by_benchmark
    by_category = common([_all_categories(blocks) for blocks in runs])
    return by_category if len(by_category[0]) >= FEWEST_AXES else by_benchmark


def common(
    runs: Sequence[Mapping[str, HeadlineScore]], *, most: int = MOST_CATEGORIES
) -> list[dict[str, HeadlineScore]]:
    """Return the scores that all runs have; if more than ``most``, those with the most questions."""
    names = [name for name in runs[0] if all(name in run for run in runs)]
    if len(names) > most:
        kept = set(sorted(names, key=lambda name: -runs[0][name].n)[:most])
        names = [name for name in names if name in kept]
    return [{name: run[name] for name in names} for run in runs]


def _all_categories(blocks: Blocks) -> dict[str, HeadlineScore]:
    label: Callable[[str, str], str] = (lambda bench, name: name) if len(blocks) == 1 else "{}: {}".format
    return {
        label(bench, name): score
        for bench, block in blocks.items()
        for name, score in category_scores(block, bench).items()
    }


def _share(
    share: float | None, interval: Sequence[float] | None = None, n: int = 0, guess: float | None = None
) -> HeadlineScore | None:
    if share is None:
        return None
    return HeadlineScore(100 * share, None if interval is None else (100 * interval[0], 100 * interval[1]), n, guess)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


# Colour, marker, line style and hatch of a run; they repeat after the last one.
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
# Characters of a run's name in the legend, and of a category on an axis; for a figure 7 inches wide.
_NAME, _CATEGORY = 84, 26
_WIDTH, _SMALL, _LARGE = 7.0, 7.0, 8.0
_MOST_FILLED = 3
_GUESS = "guess: the commonest or a random answer"
_DARK = "#222222"


def plot_kind(file: Path) -> str:
    """Return ``radar`` or ``bars`` by the file's name; bars if it contains neither."""
    return "radar" if "radar" in file.stem.lower() else "bars"


def require_plot_place(file: Path) -> None:
    """Check that a figure may be written to ``file``, before any question is answered.

    Raises:
        SettingsError: an unsupported suffix, a missing folder, or an existing file that this command did not write.
    """
    if file.suffix.lower() not in FIGURE_SUFFIXES:
        raise SettingsError(f"--plot {file}: a figure ends in {', '.join(FIGURE_SUFFIXES)}", "--plot radar.png")
    if not file.parent.is_dir():
        raise SettingsError(f"--plot {file}: there is no folder {file.parent}", "make the folder, or name another file")
    if file.exists() and (not file.is_file() or _PROGRAM.encode() not in file.read_bytes()):
        raise SettingsError(f"--plot {file} exists and is no figure of m2pt eval", "name another file")


def draw_scores(runs: Mapping[str, Blocks], file: Path) -> str | None:
    """Draw the scores of several runs and write the figure atomically.

    Args:
        runs: ``benchmarks`` of ``results.json``, by run name.
        file: PNG, SVG or PDF by its suffix; radar or bars by its name (`plot_kind`).

    Returns:
        A note for the user, for example that bars replace a radar; None if the figure is as requested.
    """
    note = None
    figure = None
    if plot_kind(file) == "radar":
        figure = radar(runs)
        if figure is None:
            note = f"a radar needs {FEWEST_AXES} scores that all runs have: {file} shows bars"
    save_figure(figure or bars(runs), file, program=_PROGRAM)
    return note


def score_images(runs: Mapping[str, Blocks]) -> list[tuple[str, bytes]]:
    """Return SVG figures for a page, each with a description: a radar if there are enough axes, and bars."""
    figures = [("Radar of the scores of each run", radar(runs)), ("Bars of the scores of each run", bars(runs))]
    return [(said, svg_of(figure, program=_PROGRAM)) for said, figure in figures if figure is not None]


def radar(runs: Mapping[str, Blocks]) -> Figure | None:
    """Draw figure 1 of the paper: an axis per benchmark, or per category of a single one; a polygon per run.

    Every axis goes from 0 to 100 %, so that polygons of different figures can be compared. Return None if there are
    fewer than three axes.
    """
    scores = radar_scores(list(runs.values()))
    names = list(scores[0])
    if len(names) < FEWEST_AXES:
        return None
    angles = [2 * math.pi * index / len(names) for index in range(len(names))]
    figure = _figure(_WIDTH, 4.9 + 0.2 * len(runs))
    axes: Any = figure.add_subplot(projection="polar")
    axes.set_theta_offset(math.pi / 2)
    axes.set_theta_direction(-1)
    for number, (run, found) in enumerate(zip(runs, scores, strict=True)):
        colour, marker, line, _ = _STYLES[number % len(_STYLES)]
        values = [score.value for score in found.values()]
        # The axis limit must not clip a marker or line at 100 %.
        axes.plot(
            [*angles, angles[0]],
            [*values, values[0]],
            line,
            color=colour,
            marker=marker,
            markersize=4,
            linewidth=1.4,
            label=_named(run),
            clip_on=False,
            zorder=3,
        )
        if len(runs) <= _MOST_FILLED or number == 0:
            axes.fill(angles, values, color=colour, alpha=0.08)
    guesses = [score.guess for score in scores[0].values() if score.guess is not None and score.n]
    if len(guesses) == len(names):
        style = {"color": _DARK, "linewidth": 0.9, "linestyle": (0, (1, 1.5))}
        axes.plot([*angles, angles[0]], [*guesses, guesses[0]], label=_GUESS, zorder=2.5, **style)
    size = _LARGE if len(names) <= 16 else _SMALL
    axes.set_xticks(angles, [_label(name) for name in names], fontsize=size)
    for label, angle in zip(axes.get_xticklabels(), angles, strict=True):
        side = math.sin(angle)
        label.set_horizontalalignment("center" if abs(side) < 0.01 else "left" if side > 0 else "right")
    axes.set_ylim(0, 100)
    axes.set_yticks([25, 50, 75, 100], ["25", "50", "75", "100 %"], fontsize=_SMALL, color="#444444", zorder=4)
    axes.set_rlabel_position(180 / len(names))
    axes.grid(linewidth=0.5)
    axes.set_title(_UNIT, fontsize=_LARGE, pad=26)
    figure.legend(loc="outside lower center", ncols=_legend_columns(runs), frameon=False, fontsize=_LARGE)
    return figure


def bars(runs: Mapping[str, Blocks]) -> Figure:
    """Draw bars by category: a panel per benchmark, a bar per run; whiskers are 95 % intervals.

    A dashed line is the chance level, n the number of questions; a score of zero is drawn as a tick. The first group
    of bars is the whole benchmark. If there are more than 30 categories, those with the most questions are shown.
    """
    panels = _panels(runs)
    thickness = 0.15 if len(runs) <= 3 else 0.12
    rows = [len(scores[0]) * (len(runs) + 0.6) for _, scores in panels]
    heights = [0.5 + thickness * max(count, 2) for count in rows]
    figure = _figure(_WIDTH, 0.5 + sum(heights) + 0.2 * (len(runs) + 1))
    cells: Any = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
    for (title, scores), axes in zip(panels, cells[:, 0], strict=True):
        _draw_bars(axes, title, list(runs), scores)
    whiskers = any(score.interval for _, scores in panels for found in scores for score in found.values())
    cells[-1, 0].set_xlabel(_UNIT + ("; lines: 95 % interval" if whiskers else ""), fontsize=_LARGE)
    entries: dict[str, Any] = {}
    for axes in cells[:, 0]:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    if (guess := entries.pop(_GUESS, None)) is not None:  # the chance level is the last entry
        entries[_GUESS] = guess
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside lower left",
        ncols=_legend_columns(runs),
        frameon=False,
        fontsize=_LARGE,
    )
    return figure


def _panels(runs: Mapping[str, Blocks]) -> list[tuple[str, list[dict[str, HeadlineScore]]]]:
    """Return title and scores (one mapping per run) of every benchmark that all runs have."""
    first, *others = runs.values()
    panels = []
    for bench in first:
        if not all(bench in blocks for blocks in others):
            continue
        # The whole benchmark first, then its parts.
        heads = [headline_scores({bench: blocks[bench]}) for blocks in runs.values()]
        parts = [category_scores(blocks[bench], bench) for blocks in runs.values()]
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
        axes.barh(
            places,
            values,
            height * 0.92,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            linewidth=0.5,
            label=_named(run),
        )
        for place, value, name in zip(places, values, names, strict=True):
            interval = found[name].interval
            if value == 0:  # a bar of zero length is drawn as a tick
                ends = [place - 0.4 * height, place + 0.4 * height]
                axes.plot([0, 0], ends, color=colour, linewidth=3, solid_capstyle="butt", clip_on=False, zorder=4)
            if interval is not None:
                axes.plot(interval, [place, place], color=_DARK, linewidth=0.9, solid_capstyle="butt")
            end = value if interval is None else max(value, interval[1])
            axes.text(
                min(end, 100) + 0.8,
                place,
                f"{value:.1f}",
                va="center",
                fontsize=_SMALL - 0.5,
                color=_DARK,
                zorder=5,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.4},
            )
    guesses = [(index, scores[0][name].guess) for index, name in enumerate(names)]
    known = [(index, guess) for index, guess in guesses if guess is not None]
    if known:
        axes.vlines(
            [guess for _, guess in known],
            [index - 0.47 for index, _ in known],
            [index + 0.47 for index, _ in known],
            color=_DARK,
            linewidth=1.2,
            linestyle=(0, (1.5, 1)),
            label=_GUESS,
            zorder=3,
        )
    labels = [_label(name) + _counted([found[name].n for found in scores]) for name in names]
    axes.set_yticks(range(len(names)), labels, fontsize=_SMALL)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 109)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.tick_params(axis="x", labelsize=_SMALL)
    axes.grid(axis="x", alpha=0.3, linewidth=0.5)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_title(_plain(title), fontsize=_LARGE, loc="left", fontweight="bold")


def _counted(counts: Sequence[int]) -> str:
    """Return the number of questions of a score, if the blocks state it; runs that stopped early may differ."""
    if not min(counts):
        return ""
    few, many = min(counts), max(counts)
    return f" (n={many:,})" if few == many else f" (n={few:,}–{many:,})"


def _label(name: str) -> str:
    """Return a category's axis label: wrapped to two lines if long, cut if longer."""
    return _plain("\n".join(textwrap.wrap(cut_middle(readable(name), 2 * _CATEGORY - 4), _CATEGORY)))


def _legend_columns(runs: Mapping[str, Blocks]) -> int:
    """Return the number of legend columns: two if all names are short."""
    return 2 if max(map(len, runs)) <= 40 else 1


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _named(run: str) -> str:
    return _plain(cut_middle(readable(run), _NAME))


def _plain(text: str) -> str:
    """Escape text for matplotlib: no formula from a dollar, no label hidden by a leading underscore."""
    text = text.replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text
