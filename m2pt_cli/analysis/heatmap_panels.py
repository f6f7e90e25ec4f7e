"""The panels of an attention figure in their order; those of prompts are drawn here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2pt_cli.analysis.attention_maps import AttentionRun, LanguageAttention
from m2pt_cli.analysis.heatmap_groups import (
    curve_height,
    draw_language_curve,
    draw_language_ratios,
    draw_language_shares,
    draw_vision_curve,
    draw_vision_ratios,
    draw_vision_shares,
    vision_curve_height,
)
from m2pt_cli.analysis.heatmap_overlay import draw_overlay, overlay_height
from m2pt_cli.analysis.heatmap_scene import LABEL, MAP, SMALL, TITLE, Scene, name_places, whole_numbers
from m2pt_cli.analysis.token_groups import TEXTUAL, VISUAL


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


def draw_answer_on_prompts(cell: Any, run: AttentionRun, scene: Scene) -> None:
    """Which prompts each token of the answer attended."""
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
    """Which visual prompts the patches attended, by layer."""
    top = scene.top(_patches_on_prompts)
    values = _patches_on_prompts(run)
    assert values is not None
    axes = _draw_map(cell, values, top, "Visual prompts that the patches attended")
    axes.set_xlabel("visual prompt", fontsize=LABEL)
    axes.set_ylabel("layer of the vision tower", fontsize=LABEL)
    name_places(axes.xaxis, [f"v{number}" for number in range(values.shape[1])])
    whole_numbers(axes.yaxis)


def draw_projected_prompts(cell: Any, run: AttentionRun, scene: Scene) -> None:
    """Projected visual prompts in the language model (``visual_tokens="official"``), by layer."""
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
