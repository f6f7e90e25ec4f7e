"""The preview image in a terminal."""

from __future__ import annotations

import numpy as np
from fixtures.made_maps import made_maps, made_run

from m2pt_cli.analysis.preview import bars, preview_lines, shades


def test_shades_and_bars() -> None:
    assert shades(np.array([[0, 1], [2, 4]], np.float32)) == ["  ░░", "▒▒██"]
    assert bars([0.0, 0.5, 1.0]) == "▁▅█"
    assert shades(np.zeros((1, 2), np.float32)) == ["    "]
    assert len(shades(np.ones((30, 30), np.float32))[0]) == 30


def test_lines_of_every_run() -> None:
    lines = preview_lines(made_maps(made_run(), made_run(None, textual=0, visual=0)))
    assert lines[0] == "runs/a: w5 w6"
    assert [line.split(",")[0].split(" ", 3)[3] for line in lines if "layers, up to" in line] == [
        "textual prompts in the language layers",
        "visual prompts in the vision layers",
    ]
    assert "bare base: w5 w6" in lines
    assert len(preview_lines(made_maps(), overlay=False)) == 3
