"""Panels of the attention figure by token group and by token, and helpers of all panels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2pt_cli.analysis.attention_maps import AttentionMaps, AttentionRun, PartAttention
from m2pt_cli.analysis.tokens import ANSWER, CLASS, FIRST, IMAGE, QUESTION, SYSTEM, TEXTUAL, VISUAL

# Colour, marker and line style of every group; the colours are Okabe and Ito's.
STYLES: dict[str, tuple[str, str, str]] = {
    TEXTUAL: ("#D55E00", "o", "-"),
    VISUAL: ("#E69F00", "s", "-"),
    FIRST: ("#666666", "x", ":"),
    CLASS: ("#CC79A7", "D", "-."),
    SYSTEM: ("#56B4E9", "^", "--"),
    IMAGE: ("#0072B2", "v", "-"),
    QUESTION: ("#009E73", "P", "--"),
    ANSWER: ("#000000", "*", "-."),
}
MAP = "viridis"
LABEL, TITLE, SMALL = 9.5, 10.5, 8.0
# More labels than these do not fit: tokens under a curve, and rows or columns of a map.
MOST_NAMED, MOST_TICKS = 64, 32
MOST_CURVES = 4


@dataclass(frozen=True)
class Scene:
    """The data and options that all panels of a figure share."""

    maps: AttentionMaps
    drop_sinks: bool

    def top(self, values: Callable[[AttentionRun], NDArray[np.float32] | None]) -> float:
        """Return the largest value over all runs in percent, so that their panels have the same scale."""
        found = [array.max() for run in self.maps.runs if (array := values(run)) is not None and array.size]
        return 100 * float(max(found, default=0.01))

    def kept(self, part: PartAttention) -> NDArray[np.bool_]:
        """Return a mask of the tokens that determine the scale: all but the first one if sinks are dropped."""
        groups = np.array(part.tokens.groups)
        return (groups != FIRST) if self.drop_sinks else np.ones(len(groups), bool)


def plain(text: str) -> str:
    """Escape dollars, so that matplotlib does not parse a formula, and replace control characters."""
    return readable(text).replace("$", r"\$")


def readable(text: str) -> str:
    """Replace control characters by spaces: fonts draw them as boxes, and an SVG that contains them can't be parsed."""
    return "".join(character if character.isprintable() or character == "\n" else " " for character in text)


def words(group: str) -> str:
    return group.replace("_", " ")


def counted(group: str, count: int) -> str:
    return words(group) if count == 1 else f"{words(group)} ({count})"


def legend(cell: Any, axes: Any, *, columns: int) -> None:
    """Draw a legend below the panel, where it covers no data."""
    handles, labels = axes.get_legend_handles_labels()
    cell.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=SMALL, frameon=False)


def name_places(axis: Any, labels: Sequence[str]) -> None:
    """Label every position of an axis; if there are too many, number some of them."""
    if len(labels) <= MOST_TICKS:
        rotation = 90 if axis.axis_name == "x" and len(labels) > 12 else 0
        axis.set_ticks(range(len(labels)), [plain(label) for label in labels], fontsize=SMALL, rotation=rotation)
    else:
        whole_numbers(axis)


def whole_numbers(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, nbins=12))


def draw_language_shares(cell: Any, run: AttentionRun, scene: Scene) -> None:
    """Draw the fraction of attention on each group in every layer of the language model."""
    assert run.language is not None
    _draw_shares(cell, run.language, scene, "Language model", "language")


def draw_vision_shares(cell: Any, run: AttentionRun, scene: Scene) -> None:
    """Draw the fraction of attention on prompts, class token and patches in every layer of the vision tower."""
    assert run.vision is not None
    _draw_shares(cell, run.vision, scene, "Vision tower", "vision")


def draw_language_ratios(cell: Any, run: AttentionRun, scene: Scene) -> None:
    """Draw attention on each group of the language model, relative to uniform attention."""
    assert run.language is not None
    _draw_ratios(cell, run.language, scene, "Language model", "language")


def draw_vision_ratios(cell: Any, run: AttentionRun, scene: Scene) -> None:
    """Draw attention on each group of the vision tower, relative to uniform attention."""
    assert run.vision is not None
    _draw_ratios(cell, run.vision, scene, "Vision tower", "vision")


def draw_language_curve(cell: Any, run: AttentionRun, scene: Scene) -> None:
    """Draw the attention that each token receives in the selected layers of the language model, or the middle one."""
    assert run.language is not None
    layers = scene.maps.layers[:MOST_CURVES] or (run.language.num_layers // 2,)
    _draw_curve(cell, run.language, scene, layers, "Language model", "language")


def draw_vision_curve(cell: Any, run: AttentionRun, scene: Scene) -> None:
    """Draw the attention that each token receives in the selected layers of the vision tower."""
    assert run.vision is not None
    _draw_curve(cell, run.vision, scene, scene.maps.vision_layers[:MOST_CURVES], "Vision tower", "vision")


def _draw_shares(cell: Any, part: PartAttention, scene: Scene, title: str, name: str) -> None:
    axes = cell.add_subplot()
    layers = np.arange(part.num_layers)
    uniform = part.uniform_shares()
    left_out = ""
    for group, share in part.shares().items():
        if group == FIRST and scene.drop_sinks:
            left_out = f"\nfirst token left out of the scale: {100 * share.min():.1f} to {100 * share.max():.1f} %"
            continue
        colour, marker, line = STYLES[group]
        count = len(part.tokens.places(group))
        axes.plot(
            layers,
            100 * share,
            color=colour,
            marker=marker,
            linestyle=line,
            markersize=5,
            linewidth=2.2 if group in (TEXTUAL, VISUAL) else 1.3,
            label=counted(group, count),
        )
        if group in (TEXTUAL, VISUAL):
            axes.axhline(100 * uniform[group], color=colour, linestyle=(0, (1, 2)), linewidth=1.4)
            axes.plot([], [], color=colour, linestyle=(0, (1, 2)), linewidth=1.4, label=f"{words(group)}, if uniform")
    axes.set_title(f"{title}: share of attention by group{left_out}", fontsize=TITLE)
    axes.set_xlabel("layer", fontsize=LABEL)
    axes.set_ylabel("share of attention (%)", fontsize=LABEL)
    axes.set_ylim(0, 1.06 * scene.top(lambda run: _highest_share(getattr(run, name), scene)))
    whole_numbers(axes.xaxis)
    axes.tick_params(labelsize=SMALL)
    axes.grid(alpha=0.3)
    legend(cell, axes, columns=3)


def _draw_ratios(cell: Any, part: PartAttention, scene: Scene, title: str, name: str) -> None:
    ratios = _ratios(part)
    found = [np.abs(_ratios(getattr(run, name))).max() for run in scene.maps.runs if getattr(run, name) is not None]
    bound = min(max(1, math.ceil(max(found))), 6)  # clip at 64 times, so that small differences keep visible colours
    axes = cell.add_subplot()
    image = axes.imshow(ratios, cmap="PuOr_r", vmin=-bound, vmax=bound, aspect="auto", interpolation="nearest")
    ticks = range(-bound, bound + 1, 1 if bound <= 3 else 2)
    bar = cell.colorbar(image, ax=axes, ticks=list(ticks), extend="both" if max(found) > bound else "neither")
    bar.ax.set_yticklabels([f"{2**tick}×" if tick >= 0 else f"1/{2**-tick}×" for tick in ticks], fontsize=SMALL)
    axes.set_title(f"{title}: attention per token of a group (1× is uniform)", fontsize=TITLE)
    axes.set_xlabel("layer", fontsize=LABEL)
    axes.tick_params(labelsize=SMALL)
    name_places(axes.yaxis, [words(group) for group in part.tokens.names])
    whole_numbers(axes.xaxis)


def _ratios(part: PartAttention) -> NDArray[np.float32]:
    """Return log2 of each group's attention relative to uniform attention ``(groups, layers)``."""
    shares, uniform = part.shares(), part.uniform_shares()
    return np.log2([np.maximum(shares[group], 1e-9) / uniform[group] for group in part.tokens.names])


def _draw_curve(cell: Any, part: PartAttention, scene: Scene, layers: Sequence[int], title: str, name: str) -> None:
    """Draw one curve per layer, one below the other."""
    top = 1.08 * scene.top(lambda run: _highest_curve(getattr(run, name), layers, scene))
    stack = cell.subplots(len(layers), 1, sharex=True, squeeze=False)[:, 0]
    for axes, layer in zip(stack, layers, strict=True):
        _draw_one_curve(axes, part, layer, top)
    numbers = ", ".join(map(str, layers))
    left_out = ""
    kept = scene.kept(part)
    if not kept.all():
        received = 100 * part.received[list(layers)][:, ~kept]
        left_out = f"\nfirst token left out of the scale: {', '.join(f'{value:.1f}' for value in received.ravel())} %"
        for axes, value in zip(stack, received[:, 0], strict=True):
            if value > top:  # an upward triangle: the value lies above the axis
                axes.plot(np.flatnonzero(~kept), [0.95 * top], marker=6, color=STYLES[FIRST][0], markersize=8)
    stack[0].set_title(
        f"{title}, layer{'s' * (len(layers) > 1)} {numbers} of 0 to {part.num_layers - 1}: "
        f"attention received by each token{left_out}",
        fontsize=TITLE,
    )
    named = len(part.tokens) <= MOST_NAMED
    if named:
        labels = [plain(label) for label in part.tokens.labels]
        stack[-1].set_xticks(range(len(labels)), labels, rotation=90, fontsize=SMALL - 1)
    stack[-1].set_xlabel("token" if named else "token, counted from the first prompt", fontsize=LABEL)
    legend(cell, stack[0], columns=5 if len(scene.maps.runs) == 1 else 3)


def _draw_one_curve(axes: Any, part: PartAttention, layer: int, top: float) -> None:
    tokens, values = part.tokens, 100 * part.received[layer]
    axes.plot(values, color="#999999", linewidth=0.8)
    axes.plot(100 * part.uniform, color="#222222", linewidth=1, linestyle=(0, (1, 2)), label="if uniform")
    for group in tokens.names:
        colour, marker, _ = STYLES[group]
        members = tokens.places(group)
        axes.axvspan(members[0] - 0.5, members[-1] + 0.5, color=colour, alpha=0.10, linewidth=0)
        shown = members[values[members] <= top]
        size = 26 if group in (TEXTUAL, VISUAL) else 12
        axes.scatter(
            shown, values[shown], s=size, color=colour, marker=marker, label=counted(group, len(members)), zorder=3
        )
    axes.set_ylabel(f"layer {layer} (%)", fontsize=LABEL)
    axes.set_xlim(-0.8, len(tokens) - 0.2)
    axes.set_ylim(0, top)
    axes.tick_params(labelsize=SMALL)
    axes.grid(alpha=0.3, axis="y")


def curve_height(scene: Scene) -> float:
    """Return the height of the language model's curves in inches."""
    return 2.4 + 1.5 * max(1, min(len(scene.maps.layers), MOST_CURVES))


def vision_curve_height(scene: Scene) -> float:
    """Return the height of the vision tower's curves in inches."""
    return 2.3 + 1.5 * max(1, min(len(scene.maps.vision_layers), MOST_CURVES))


def _highest_share(part: PartAttention | None, scene: Scene) -> NDArray[np.float32] | None:
    if part is None:
        return None
    return np.stack([share for name, share in part.shares().items() if not (scene.drop_sinks and name == FIRST)])


def _highest_curve(part: PartAttention | None, layers: Sequence[int], scene: Scene) -> NDArray[np.float32] | None:
    return None if part is None else part.received[list(layers)][:, scene.kept(part)]
