"""Write figures to files, atomically and reproducibly: the same content gives the same bytes."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Omit the creation time, which would make every file different.
_METADATA: dict[str, dict[str, str | None]] = {
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
    ".png": {},
}
# The metadata key of the program, by format.
_PROGRAM = {".svg": "Creator", ".pdf": "Creator", ".png": "Software"}


def save_figure(figure: Figure, file: Path, *, program: str = "m2pt") -> None:
    """Write a figure as PNG, SVG or PDF, by the suffix.

    Args:
        program: stored in the file's metadata as its creator.
    """
    suffix = file.suffix.lower()
    partial = file.with_name(f".{file.name}.partial")
    try:
        _write(figure, partial, suffix, program)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def svg_of(figure: Figure, *, program: str = "m2pt") -> bytes:
    """Return a figure as the content of an SVG file."""
    buffer = BytesIO()
    _write(figure, buffer, ".svg", program)
    return buffer.getvalue()


def _write(figure: Figure, file: Path | BytesIO, suffix: str, program: str) -> None:
    import matplotlib

    # Without a hash salt, SVG ids are random; publishers refuse Type 3 fonts in a PDF.
    options: Any = {"svg.hashsalt": program, "pdf.fonttype": 42}
    with warnings.catch_warnings(), matplotlib.rc_context(options):
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")  # characters without a glyph are drawn as boxes
        figure.savefig(file, format=suffix[1:], metadata={**_METADATA[suffix], _PROGRAM[suffix]: program})
