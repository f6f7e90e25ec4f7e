"""Figures as files: written whole or not at all, the same bytes for the same content."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What else a file would hold: the time, which makes every file another one.
_METADATA: dict[str, dict[str, str | None]] = {
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
    ".png": {},
}
# Where a format says which program made it.
_PROGRAM = {".svg": "Creator", ".pdf": "Creator", ".png": "Software"}


def save_figure(figure: Figure, file: Path, *, program: str = "m2pt") -> None:
    """Write a figure as PNG, SVG or PDF, by the suffix.

    Args:
        program: kept in the file as what made it.
    """
    suffix = file.suffix.lower()
    partial = file.with_name(f".{file.name}.partial")
    try:
        _write(figure, partial, suffix, program)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def svg_of(figure: Figure, *, program: str = "m2pt") -> bytes:
    """A figure as the content of an SVG file."""
    buffer = BytesIO()
    _write(figure, buffer, ".svg", program)
    return buffer.getvalue()


def _write(figure: Figure, file: Path | BytesIO, suffix: str, program: str) -> None:
    import matplotlib

    # An SVG names its parts at random unless it is told from what; publishers refuse a PDF's Type 3 fonts.
    options: Any = {"svg.hashsalt": program, "pdf.fonttype": 42}
    with warnings.catch_warnings(), matplotlib.rc_context(options):
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")  # a script without a font is drawn as boxes
        figure.savefig(file, format=suffix[1:], metadata={**_METADATA[suffix], _PROGRAM[suffix]: program})
