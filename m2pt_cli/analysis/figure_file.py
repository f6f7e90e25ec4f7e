"""Writes figures atomically; the same figure gives the same bytes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Omit the time stamp, so that the same figure gives the same bytes.
_METADATA: dict[str, dict[str, str | None]] = {
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
    ".png": {},
}
# The metadata key for the program, by format.
_PROGRAM = {".svg": "Creator", ".pdf": "Creator", ".png": "Software"}


def save_figure(figure: Figure, file: Path, *, program: str = "m2pt") -> None:
    """Write a figure as PNG, SVG or PDF, by the file's suffix.

    Args:
        figure: the figure.
        file: the file to write or replace.
        program: stored in the metadata as the program that made the file.
    """
    import matplotlib

    suffix = file.suffix.lower()
    partial = file.with_name(f".{file.name}.partial")
    try:
        # Without a fixed salt, the ids in an SVG are random.
        with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": program}):
            warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")  # characters that no font has are drawn as boxes
            figure.savefig(partial, format=suffix[1:], metadata={**_METADATA[suffix], _PROGRAM[suffix]: program})
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
