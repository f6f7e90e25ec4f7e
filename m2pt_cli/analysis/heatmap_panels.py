"""The panels of an attention figure; each draws one run into a part of the figure, on scales shared by all runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2pt_cli.analysis.attention_maps import AttentionMaps, AttentionRun, LanguageAttention, PartAttention
from m2pt_cli.analysis.token_groups import ANSWER, CLASS, FIRST, IMAGE, QUESTION, SYSTEM, TEXTUAL, VISUAL

# Colour, marker and line of every group; Okabe and Ito's colours.
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
_MAP = "viridis"
_LABEL, _TITLE, _SMALL = 9.5, 10.5, 8.0
# As many tokens can be named under a curve, and as many rows or columns of a map.
_MOST_NAMED, _MOST_TICKS = 64, 32
_MOST_CURVES = 4


@dataclass(frozen=True)
class Scene:
    """What all panels of a figure share."""

    maps: AttentionMaps
    drop_sinks: bool

    def top(self, values: Callable[[AttentionRun], NDArray[np.float32] | None]) -> float:
        """The largest value over all runs, in percent: one scale for what is compared."""
        found = [array.max() for run in self.maps.runs if (array := values(run)) is not None and array.size]
        return 100 * float(max(found, default=0.01))

    def kept(self, part: PartAttention) -> NDArray[np.bool_]:
        """The tokens that scales are made for."""
        groups = np.array(part.tokens.groups)
        return (groups != FIRST) if self.drop_sinks else np.ones(len(groups), bool)


@dataclass(frozen=True)
class Panel:
    """One kind of panel.

    Attributes:
        part: the part of ``settings.ATTENTION_PARTS`` it belongs to.
        applies: whether a run has what it shows; ``absent`` is said where it has not.
        is_wide: takes both columns of a figure of one run.
    """

    part: str
    draw: Callable[[Any, AttentionRun, Scene], None]
    applies: Callable[[AttentionRun], bool]
    absent: str
    height: Callable[[Scene], float]
    is_wide: bool = False


def plain(text: str) -> str:
    """Text that matplotlib takes as it is: a dollar begins no formula."""
    return text.replace("$", r"\$")


def draw_overlay(cell: Any, run: AttentionRun, scene: Scene) -> None:
    """The image, and the answer's attention on it for every chosen layer, head and token."""
    assert run.language is not None
    wanted = _overlays(scene.maps)
    top = scene.top(lambda other: None if other.language is None else np.stack([_heat(other, one) for one in wanted]))
    rows, columns = _grid(len(wanted) + 1)
    axes = cell.subplots(rows, columns, squeeze=False).ravel()
    for one in axes:
        one.axis("off")
    axes[0].imshow(run.picture)
    axes[0].set_title("image", fontsize=_LABEL)
    height, width = run.picture.shape[:2]
    grey = run.picture.mean(-1)
    for place, choice in zip(axes[1:], wanted, strict=False):
        place.imshow(grey, cmap="gray", vmin=0, vmax=255)
        heat = place.imshow(
            100 * _heat(run, choice),
            cmap=_MAP,
            vmin=0,
            vmax=top,
            alpha=0.65,
            interpolation="bilinear",
            extent=(0, width, height, 0),
        )
        place.set_title(_choice_title(run, choice), fontsize=_LABEL if len(wanted) == 1 else _SMALL)
    bar = cell.colorbar(heat, ax=list(axes), shrink=0.8)
    bar.set_label("attention on each patch (%)", fontsize=_LABEL)
    uniform = 100 * run.language.overlay_uniform()
    if uniform < top:
        bar.ax.axhline(uniform, color="white", linewidth=2.5)
        bar.ax.axhline(uniform, color="black", linewidth=1, linestyle="--")
        bar.ax.set_title("-- even", fontsize=_SMALL)


def draw_language_shares(cell: Any, run: AttentionRun, scene: Scene) -> None:
    """Share of attention on each group in every layer of the language model."""
    assert run.language is not None
    _draw_shares(cell, run.language, scene, "Language model", "language")


def draw_vision_shares(cell: Any, run: AttentionRun, scene: Scene) -> None:
    """Share of attention on prompts, class token and patches in every layer of the vision tower."""
    assert run.vision is not None
    _draw_shares(cell, run.vision, scene, "Vision tower", "vision")


def draw_language_curve(cell: Any, run: AttentionRun, scene: Scene) -> None:
    """What each token receives, in the chosen layers or the middle one."""
    assert run.language is not None
    layers = scene.maps.layers[:_MOST_CURVES] or (run.language.num_layers // 2,)
    _draw_curve(cell, run.language, scene, layers, "Language model", "language")


def draw_vision_curve(cell: Any, run: AttentionRun, scene: Scene) -> None:
    """What each token receives in one layer of the vision tower."""
    assert run.vision is not None
    _draw_curve(cell, run.vision, scene, (scene.maps.vision_layer,), "Vision tower", "vision")


def draw_answer_on_prompts(cell: Any, run: AttentionRun, scene: Scene) -> None:
    """Which prompts each token of the answer attended."""
    assert run.language is not None
    layers = scene.maps.layers
    values, labels = run.language.answer_on_prompts(layers)
    top = scene.top(lambda other: None if other.language is None else other.language.answer_on_prompts(layers)[0])
    where = f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}" if layers else "mean of layers"
    axes = _draw_map(cell, values, top, f"Prompts that each answer token attended ({where})")
    axes.set_xlabel("prompt of the language model", fontsize=_LABEL)
    axes.set_ylabel("answer token", fontsize=_LABEL)
    _name(axes.xaxis, labels)
    _name(axes.yaxis, run.answer_tokens)


def draw_patches_on_prompts(cell: Any, run: AttentionRun, scene: Scene) -> None:
    """Which visual prompts the patches attended, by layer."""
    top = scene.top(_patches_on_prompts)
    values = _patches_on_prompts(run)
    assert values is not None
    axes = _draw_map(cell, values, top, "Visual prompts that the patches attended")
    axes.set_xlabel("visual prompt", fontsize=_LABEL)
    axes.set_ylabel("layer of the vision tower", fontsize=_LABEL)
    _name(axes.xaxis, [f"v{number}" for number in range(values.shape[1])])
    _whole_numbers(axes.yaxis)


def draw_projected_prompts(cell: Any, run: AttentionRun, scene: Scene) -> None:
    """Projected visual prompts in the language model (``visual_tokens="official"``), by layer."""
    assert run.language is not None
    values = _projected(run.language)
    top = scene.top(lambda other: None if other.language is None else _projected(other.language))
    axes = _draw_map(cell, values, top, "Projected visual prompts in the language model")
    axes.set_xlabel("visual prompt, as image token", fontsize=_LABEL)
    axes.set_ylabel("layer of the language model", fontsize=_LABEL)
    places = run.language.tokens.places(VISUAL)
    _name(axes.xaxis, [run.language.tokens.labels[place] for place in places])
    _whole_numbers(axes.yaxis)


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
            label=_counted(group, count),
        )
        if group in (TEXTUAL, VISUAL):
            axes.axhline(100 * uniform[group], color=colour, linestyle=(0, (1, 2)), linewidth=1.4)
            axes.plot([], [], color=colour, linestyle=(0, (1, 2)), linewidth=1.4, label=f"{_words(group)}, if even")
    axes.set_title(f"{title}: share of attention by group{left_out}", fontsize=_TITLE)
    axes.set_xlabel("layer", fontsize=_LABEL)
    axes.set_ylabel("share of attention (%)", fontsize=_LABEL)
    axes.set_ylim(0, 1.06 * scene.top(lambda run: _highest_share(getattr(run, name), scene)))
    _whole_numbers(axes.xaxis)
    axes.tick_params(labelsize=_SMALL)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3, fontsize=_SMALL, frameon=False)


def _draw_curve(cell: Any, part: PartAttention, scene: Scene, layers: Sequence[int], title: str, name: str) -> None:
    axes = cell.add_subplot()
    tokens = part.tokens
    places = np.arange(len(tokens))
    kept = scene.kept(part)
    top = 1.08 * scene.top(lambda run: _highest_curve(getattr(run, name), layers, scene))
    for layer, line in zip(layers, ("-", "--", "-.", ":"), strict=False):
        label = f"layer {layer}" if len(layers) > 1 else None
        axes.plot(places, 100 * part.received[layer], color="#999999", linewidth=0.8, linestyle=line, label=label)
    axes.plot(places, 100 * part.uniform, color="#222222", linewidth=1, linestyle=(0, (1, 2)), label="if even")
    for group in tokens.names:
        colour, marker, _ = STYLES[group]
        own = tokens.places(group)
        axes.axvspan(own[0] - 0.5, own[-1] + 0.5, color=colour, alpha=0.10, linewidth=0)
        size = 26 if group in (TEXTUAL, VISUAL) else 12
        for number, layer in enumerate(layers):
            shown = own[100 * part.received[layer, own] <= top]
            heights = 100 * part.received[layer, shown]
            label = _counted(group, len(own)) if number == 0 else None
            axes.scatter(shown, heights, s=size, color=colour, marker=marker, label=label, zorder=3)
    if not kept.all():
        first = int(np.flatnonzero(~kept)[0])
        said = ", ".join(f"{100 * part.received[layer, first]:.1f} %" for layer in layers)
        axes.annotate(
            f"first token: {said}, left out of the scale",
            (first, top),
            xytext=(8, -12),
            textcoords="offset points",
            fontsize=_SMALL,
            arrowprops={"arrowstyle": "->", "color": "#666666"},
        )
    numbers = ", ".join(map(str, layers))
    axes.set_title(
        f"{title}, layer{'s' * (len(layers) > 1)} {numbers} (of 0 to {part.num_layers - 1}): attention received",
        fontsize=_TITLE,
    )
    axes.set_ylabel("attention received (%)", fontsize=_LABEL)
    axes.set_xlim(-0.8, len(tokens) - 0.2)
    axes.set_ylim(0, top)
    axes.tick_params(labelsize=_SMALL)
    axes.grid(alpha=0.3, axis="y")
    named = len(tokens) <= _MOST_NAMED
    if named:
        axes.set_xticks(places, [plain(label) for label in tokens.labels], rotation=90, fontsize=_SMALL - 1)
    axes.set_xlabel("token" if named else "token, counted from the first prompt", fontsize=_LABEL)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=_SMALL, frameon=False)


def _draw_map(cell: Any, values: NDArray[np.float32], top: float, title: str) -> Any:
    axes = cell.add_subplot()
    image = axes.imshow(100 * values, cmap=_MAP, vmin=0, vmax=top, aspect="auto", interpolation="nearest")
    bar = cell.colorbar(image, ax=axes)
    bar.set_label("attention (%)", fontsize=_LABEL)
    bar.ax.tick_params(labelsize=_SMALL)
    axes.set_title(title, fontsize=_TITLE)
    axes.tick_params(labelsize=_SMALL)
    return axes


def _heat(run: AttentionRun, choice: tuple[int | None, int, int | None]) -> NDArray[np.float32]:
    layer, head, token = choice
    assert run.language is not None
    return run.language.overlay([] if layer is None else [layer], head, [] if token is None else [token])


def _overlays(maps: AttentionMaps) -> list[tuple[int | None, int, int | None]]:
    """Layer, place among the heads, and token of every overlay; None is the mean."""
    layers: Sequence[int | None] = maps.layers or (None,)
    tokens: Sequence[int | None] = maps.tokens or (None,)
    return [(layer, head, token) for layer in layers for head in range(len(maps.heads) or 1) for token in tokens]


def _choice_title(run: AttentionRun, choice: tuple[int | None, int, int | None]) -> str:
    layer, place, token = choice
    assert run.language is not None
    head = run.language.heads[place]
    words = ["mean of layers" if layer is None else f"layer {layer}"]
    words += [] if head is None else [f"head {head}"]
    words += [] if token is None else [f"token {token}"]
    text = ", ".join(words)
    return text if token is None else plain(f"{text}\n“{run.answer_tokens[token]}”")


def _grid(count: int) -> tuple[int, int]:
    columns = min(count, 2 if count <= 4 else 4 if count <= 12 else 5)
    return math.ceil(count / columns), columns


def _overlay_height(scene: Scene) -> float:
    rows, columns = _grid(len(_overlays(scene.maps)) + 1)
    return max(3.2, 0.7 + rows * (5.4 / columns + 0.35)) if rows > 1 else 3.4


def _map_height(scene: Scene) -> float:
    rows = max(len(run.answer_tokens) for run in scene.maps.runs)
    return min(max(3.4, 1.3 + 0.17 * rows), 7.0)


def _patches_on_prompts(run: AttentionRun) -> NDArray[np.float32] | None:
    return None if run.vision is None else run.vision.from_patches[:, run.vision.tokens.places(VISUAL)]


def _projected(language: LanguageAttention) -> NDArray[np.float32]:
    return language.received[:, language.tokens.places(VISUAL)]


def _highest_share(part: PartAttention | None, scene: Scene) -> NDArray[np.float32] | None:
    if part is None:
        return None
    return np.stack([share for name, share in part.shares().items() if not (scene.drop_sinks and name == FIRST)])


def _highest_curve(part: PartAttention | None, layers: Sequence[int], scene: Scene) -> NDArray[np.float32] | None:
    return None if part is None else part.received[list(layers)][:, scene.kept(part)]


def _words(group: str) -> str:
    return group.replace("_", " ")


def _counted(group: str, count: int) -> str:
    return _words(group) if count == 1 else f"{_words(group)} ({count})"


def _name(axis: Any, labels: Sequence[str]) -> None:
    """Every place by its label, or some by their number where they are too many."""
    if len(labels) <= _MOST_TICKS:
        rotation = 90 if axis.axis_name == "x" and len(labels) > 12 else 0
        axis.set_ticks(range(len(labels)), [plain(label) for label in labels], fontsize=_SMALL, rotation=rotation)
    else:
        _whole_numbers(axis)


def _whole_numbers(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, nbins=12))


def _has_language(run: AttentionRun) -> bool:
    return run.language is not None


def _has_vision(run: AttentionRun) -> bool:
    return run.vision is not None


def _has_prompts(run: AttentionRun) -> bool:
    return run.language is not None and len(run.language.tokens.places(TEXTUAL, VISUAL)) > 0


def _has_visual_prompts(run: AttentionRun) -> bool:
    return run.vision is not None and len(run.vision.tokens.places(VISUAL)) > 0


def _has_projected(run: AttentionRun) -> bool:
    return run.language is not None and len(run.language.tokens.places(VISUAL)) > 0


PANELS = (
    Panel("overlay", draw_overlay, _has_language, "", _overlay_height),
    Panel("prompts", draw_answer_on_prompts, _has_prompts, "no prompts in the language model", _map_height),
    Panel("language", draw_language_shares, _has_language, "", lambda _: 4.2),
    Panel("vision", draw_vision_shares, _has_vision, "", lambda _: 4.2),
    Panel("language", draw_language_curve, _has_language, "", lambda _: 3.8, is_wide=True),
    Panel("vision", draw_vision_curve, _has_vision, "", lambda _: 3.8),
    Panel("prompts", draw_patches_on_prompts, _has_visual_prompts, "no visual prompts", lambda _: 3.8),
    Panel("prompts", draw_projected_prompts, _has_projected, "no projected visual prompts", lambda _: 3.8),
)
