"""Text fits the room it has."""

from __future__ import annotations

from m2pt_cli.analysis.figure_text import cut_middle, fit, readable, text_width


def test_text_fits_its_width() -> None:
    assert fit("two words", 5, 7) == "two words"
    cut = fit("a rather long label of a run", 0.8, 7)
    assert cut.endswith("…") and text_width(cut, 7) <= 0.8
    lines = fit("a rather long label of a run", 0.8, 7, lines=2).split("\n")
    assert len(lines) == 2 and all(text_width(line, 7) <= 0.8 for line in lines)
    assert fit("unbreakable" * 9, 1, 7, lines=2).count("\n") == 1


def test_both_ends_of_a_cut_name_stay() -> None:
    assert cut_middle("short", 9) == "short"
    assert cut_middle("runs/a-long-name-seed1", 11) == "runs/…seed1"
    assert len(cut_middle("x" * 99, 20)) == 20


def test_control_characters_become_spaces() -> None:
    assert readable("a\x1b[31m\nb") == "a [31m\nb"
