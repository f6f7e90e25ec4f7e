"""The panel of the image with the answer's attention on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2pt_cli.analysis.attention_maps import AttentionMaps, AttentionRun
from m2pt_cli.analysis.heatmap_scene import LABEL, MAP, SMALL, Scene, plain


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
    axes[0].set_title("image", fontsize=LABEL)
    height, width = run.picture.shape[:2]
    grey = run.picture.mean(-1)
    for place, choice in zip(axes[1:], wanted, strict=False):
        place.imshow(grey, cmap="gray", vmin=0, vmax=255)
        heat = place.imshow(
            100 * _heat(run, choice),
            cmap=MAP,
            vmin=0,
            vmax=top,
            alpha=0.65,
            interpolation="bilinear",
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        )
        place.set_title(_choice_title(run, choice), fontsize=LABEL if len(wanted) == 1 else SMALL)
    bar = cell.colorbar(heat, ax=list(axes), shrink=0.8)
    bar.set_label("attention on each patch (%)\ndashed: if it were uniform", fontsize=LABEL)
    bar.ax.tick_params(labelsize=SMALL)
    uniform = 100 * run.language.overlay_uniform()
    if uniform < top:
        bar.ax.axhline(uniform, color="white", linewidth=2.5)
        bar.ax.axhline(uniform, color="black", linewidth=1, linestyle="--")


def overlay_height(scene: Scene) -> float:
    rows, columns = _grid(len(_overlays(scene.maps)) + 1)
    return max(3.4, 0.5 + rows * (4.0 / columns + 0.42))


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
    columns = count if count <= 3 else math.ceil(math.sqrt(count))
    return math.ceil(count / columns), columns
