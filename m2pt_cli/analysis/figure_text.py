"""Text in figures: remove control characters, measure width, and cut to the available width."""

from __future__ import annotations

from functools import lru_cache


def readable(text: str) -> str:
    """Remove control characters: fonts draw them as boxes, and an SVG with them can't be parsed."""
    return "".join(character if character.isprintable() or character == "\n" else " " for character in text)


@lru_cache(maxsize=4096)
def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Return the width in inches of one line of text at ``size`` points."""
    import warnings

    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")  # characters without a glyph are drawn as boxes
        font = FontProperties(size=size, weight="bold" if bold else "normal")
        return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) / 72


def fit(text: str, width: float, size: float, *, lines: int = 1, bold: bool = False) -> str:
    """Wrap text to at most ``lines`` lines of ``width`` inches; text that does not fit is cut with an ellipsis."""
    words = readable(text).split()
    found: list[str] = []
    while words and len(found) < lines:
        line = ""
        last = len(found) == lines - 1
        while words:
            longer = f"{line} {words[0]}".strip()
            if text_width(longer, size, bold=bold) > width:
                break
            line = longer
            words.pop(0)
        if words and (last or not line):
            # The last line takes the rest, cut; a word wider than a line is broken.
            rest = f"{line} {' '.join(words)}".strip() if last else words[0]
            mark = "…" if last else ""
            count = len(rest)
            while count > 1 and text_width(rest[:count].rstrip() + mark, size, bold=bold) > width:
                count -= 1
            line = rest[:count].rstrip() + mark
            words = [] if last else [words[0][count:], *words[1:]]
        found.append(line)
    return "\n".join(found)


def cut_middle(text: str, most: int) -> str:
    """Cut text in the middle to at most ``most`` characters: names of runs often differ only at their ends."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}…{text[-tail:]}"
