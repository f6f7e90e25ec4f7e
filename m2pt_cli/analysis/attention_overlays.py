"""Panels of the attention figure that show image overlays or prompts, and the list of all panels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2pt_cli.analysis.attention_maps import AttentionMaps, AttentionRun, LanguageAttention
from m2pt_cli.analysis.attention_panels import (
    LABEL,
    MAP,
    SMALL,
    TITLE,
    Scene,
    curve_height,
    draw_language_curve,
    draw_language_ratios,
    draw_language_shares,
    draw_vision_curve,
    draw_vision_ratios,
    draw_vision_shares,
    name_places,
    plain,
    vision_curve_height,
    whole_numbers,
)
from m2pt_cli.analysis.tokens import TEXTUAL, VISUAL


def draw_overlay(cell: Any, run: AttentionRun, scene: Scene) -> None:
    """Draw the image, and over it the answer's attention for every selected layer, head and token."""
    assert run.language is not None
    choices = _overlays(scene.maps)
    top = scene.top(lambda other: None if other.language is None else np.stack([_heat(other, one) for one in choices]))
    rows, columns = _grid(len(choices) + 1)
    axes = cell.subplots(rows, columns, squeeze=False).ravel()
    for one in axes:
        one.axis("off")
    axes[0].imshow(run.picture)
    axes[0].set_title("image", fontsize=LABEL)
    height, width = run.picture.shape[:2]
    grey = run.picture.mean(-1)
    for panel, choice in zip(axes[1:], choices, strict=False):
        panel.imshow(grey, cmap="gray", vmin=0, vmax=255)
        heat = panel.imshow(
            100 * _heat(run, choice),
            cmap=MAP,
            vmin=0,
            vmax=top,
            alpha=0.65,
            interpolation="bilinear",
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        )
        panel.set_title(_choice_title(run, choice), fontsize=LABEL if len(choices) == 1 else SMALL)
    bar = cell.colorbar(heat, ax=list(axes), shrink=0.8)
    bar.set_label("attention on each patch (%)\ndashed: if it were uniform", fontsize=LABEL)
    bar.ax.tick_params(labelsize=SMALL)
    uniform = 100 * run.language.overlay_uniform()
    if uniform < top:
        bar.ax.axhline(uniform, color="white", linewidth=2.5)
        bar.ax.axhline(uniform, color="black", linewidth=1, linestyle="--")


def overlay_height(scene: Scene) -> float:
    """Return the height of the overlay panel in inches."""
    rows, columns = _grid(len(_overlays(scene.maps)) + 1)
    return max(3.4, 0.5 + rows * (4.0 / columns + 0.42))


def _heat(run: AttentionRun, choice: tuple[int | None, int, int | None]) -> NDArray[np.float32]:
    layer, head, token = choice
    assert run.language is not None
    return run.language.overlay([] if layer is None else [layer], head, [] if token is None else [token])


def _overlays(maps: AttentionMaps) -> list[tuple[int | None, int, int | None]]:
    """Return layer, index among the selected heads, and token of every overlay; None is the mean."""
    layers: Sequence[int | None] = maps.layers or (None,)
    tokens: Sequence[int | None] = maps.tokens or (None,)
    return [(layer, head, token) for layer in layers for head in range(len(maps.heads) or 1) for token in tokens]


def _choice_title(run: AttentionRun, choice: tuple[int | None, int, int | None]) -> str:
    layer, index, token = choice
    assert run.language is not None
    head = run.language.heads[index]
    parts = ["mean of layers" if layer is None else f"layer {layer}"]
    parts += [] if head is None else [f"head {head}"]
    parts += [] if token is None else [f"token {token}"]
    text = ", ".join(parts)
    return text if token is None else plain(f"{text}\n“{run.answer_tokens[token]}”")


def _grid(count: int) -> tuple[int, int]:
    columns = count if count <= 3 else math.ceil(math.sqrt(count))
    return math.ceil(count / columns), columns


@dataclass(frozen=True)
class Panel:
    """One kind of panel.

    Attributes:
        part: the part of ``settings.ATTENTION_PARTS`` it belongs to.
        draw: draws the panel of a run into a subfigure.
        applies: whether a run has the data that the panel shows.
        absent: text that is shown instead for other runs.
        height: in inches.
        is_wide: spans both columns in a figure of one run.
    """

    part: str
    draw: Callable[[Any, AttentionRun, Scene], None]
    applies: Callable[[AttentionRun], bool]
    absent: str
    height: Callable[[Scene], float]
    is_wide: bool = False


def draw_answer_on_prompts(cell: Any, run: AttentionRun, scene: Scene) -> None:
    """Draw the attention of each answer token on each prompt of the language model."""
    assert run.language is not None
    layers = scene.maps.layers
    values, labels = run.language.answer_on_prompts(layers)
    top = scene.top(lambda other: None if other.language is None else other.language.answer_on_prompts(layers)[0])
    where = f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}" if layers else "mean of layers"
    axes = _draw_map(cell, values, top, f"Prompts that each answer token attended ({where})")
    axes.set_xlabel("prompt of the language model", fontsize=LABEL)
    axes.set_ylabel("answer token", fontsize=LABEL)
    name_places(axes.xaxis, labels)
    name_places(axes.yaxis, run.answer_tokens)


def draw_patches_on_prompts(cell: Any, run: AttentionRun, scene: Scene) -> None:
    """Draw the attention of the image patches on each visual prompt, by layer of the vision tower."""
    top = scene.top(_patches_on_prompts)
    values = _patches_on_prompts(run)
    assert values is not None
    axes = _draw_map(cell, values, top, "Visual prompts that the patches attended")
    axes.set_xlabel("visual prompt", fontsize=LABEL)
    axes.set_ylabel("layer of the vision tower", fontsize=LABEL)
    name_places(axes.xaxis, [f"v{number}" for number in range(values.shape[1])])
    whole_numbers(axes.yaxis)


def draw_projected_prompts(cell: Any, run: AttentionRun, scene: Scene) -> None:
    """Draw the language model's attention on projected visual prompts (``visual_tokens="official"``), by layer."""
    assert run.language is not None
    values = _projected(run.language)
    top = scene.top(lambda other: None if other.language is None else _projected(other.language))
    axes = _draw_map(cell, values, top, "Projected visual prompts in the language model")
    axes.set_xlabel("visual prompt, as image token", fontsize=LABEL)
    axes.set_ylabel("layer of the language model", fontsize=LABEL)
    places = run.language.tokens.places(VISUAL)
    name_places(axes.xaxis, [run.language.tokens.labels[place] for place in places])
    whole_numbers(axes.yaxis)


def _draw_map(cell: Any, values: NDArray[np.float32], top: float, title: str) -> Any:
    axes = cell.add_subplot()
    image = axes.imshow(100 * values, cmap=MAP, vmin=0, vmax=top, aspect="auto", interpolation="nearest")
    bar = cell.colorbar(image, ax=axes)
    bar.set_label("attention (%)", fontsize=LABEL)
    bar.ax.tick_params(labelsize=SMALL)
    axes.set_title(title, fontsize=TITLE)
    axes.tick_params(labelsize=SMALL)
    return axes


def _patches_on_prompts(run: AttentionRun) -> NDArray[np.float32] | None:
    return None if run.vision is None else run.vision.from_patches[:, run.vision.tokens.places(VISUAL)]


def _projected(language: LanguageAttention) -> NDArray[np.float32]:
    return language.received[:, language.tokens.places(VISUAL)]


def _map_height(scene: Scene) -> float:
    rows = max(len(run.answer_tokens) for run in scene.maps.runs)
    return min(max(3.4, 1.3 + 0.17 * rows), 7.0)


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
    Panel("overlay", draw_overlay, _has_language, "", overlay_height),
    Panel("prompts", draw_answer_on_prompts, _has_prompts, "no prompts in the language model", _map_height),
    Panel("language", draw_language_shares, _has_language, "", lambda _: 4.2),
    Panel("vision", draw_vision_shares, _has_vision, "", lambda _: 4.2),
    Panel("language", draw_language_ratios, _has_language, "", lambda _: 2.8),
    Panel("vision", draw_vision_ratios, _has_vision, "", lambda _: 2.8),
    Panel("language", draw_language_curve, _has_language, "", curve_height, is_wide=True),
    Panel("vision", draw_vision_curve, _has_vision, "", vision_curve_height),
    Panel("prompts", draw_patches_on_prompts, _has_visual_prompts, "no visual prompts", lambda _: 3.8),
    Panel("prompts", draw_projected_prompts, _has_projected, "no projected visual prompts", lambda _: 3.8),
)
