"""A preview of attention maps for the terminal, in block characters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from m2pt_cli.analysis.attention_maps import AttentionMaps, AttentionRun, PartAttention
from m2pt_cli.analysis.tokens import TEXTUAL, VISUAL

_SHADES = " ░▒▓█"
_BARS = "▁▂▃▄▅▆▇█"
_MOST_COLUMNS = 48


def preview_lines(maps: AttentionMaps, *, overlay: bool = True) -> list[str]:
    """Return for every run lines with the answer's attention on the image, and the attention on prompts by layer."""
    lines = []
    for run in maps.runs:
        lines.append(f"{run.name}" + ("" if run.answer is None else f": {run.answer}"))
        if overlay and run.language is not None:
            heat = run.language.overlay(maps.layers, 0, maps.tokens)
            lines += [f"  {line}" for line in shades(heat)]
            lines.append(f"  darkest 0 %, brightest {100 * heat.max():.2f} % of attention on a patch")
        lines += _bars_of(run)
    return lines


def shades(heat: NDArray[np.float32]) -> list[str]:
    """Return a grid as lines of shaded blocks; the largest value is a full block.

    A cell takes two columns, so that it is about square, or one if the line would be too wide.
    """
    steps = heat / max(float(heat.max()), 1e-12) * (len(_SHADES) - 1)
    columns = 2 if heat.shape[1] * 2 <= _MOST_COLUMNS else 1
    return ["".join(_SHADES[step] * columns for step in row) for row in steps.round().astype(int)]


def bars(values: Sequence[float]) -> str:
    """Return values as a line of vertical bars; the largest value is a full bar."""
    top = max(max(values, default=0.0), 1e-12)
    return "".join(_BARS[min(int(value / top * len(_BARS)), len(_BARS) - 1)] for value in values)


def _bars_of(run: AttentionRun) -> list[str]:
    lines = []
    parts: tuple[tuple[PartAttention | None, str], ...] = ((run.language, "language"), (run.vision, "vision"))
    for part, name in parts:
        for group, share in ({} if part is None else part.shares()).items():
            if group in (TEXTUAL, VISUAL):
                label = f"{group.replace('_', ' ')} in the {name} layers"
                lines.append(f"  {bars(share.tolist())} {label}, up to {100 * share.max():.1f} %")
    return lines
