from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from m2pt_cli.training.loss_plot import plot_loss, running_mean


def test_running_mean() -> None:
    assert running_mean([4.0, 2.0, 6.0, 0.0], share=0.5) == [4.0, 3.0, 4.0, 3.0]
    assert running_mean([1.0, 2.0]) == [1.0, 2.0]
    assert running_mean([]) == []


@pytest.mark.parametrize("validation", [[], [{"step": 5, "validation_loss": 1.0}]])
def test_draws_what_there_is(tmp_path: Path, validation: list[dict[str, float]]) -> None:
    rows = [{"step": step, "loss": 3 / step} for step in range(1, 10)]
    plot_loss([*rows, *validation], tmp_path / "loss.png", title="m2pt on nano, demo")
    with Image.open(tmp_path / "loss.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(2**20)}
    assert (8, 81, 156) in colours  # the running mean
    assert ((217, 72, 1) in colours) == bool(validation)


def test_no_rows_is_an_empty_picture(tmp_path: Path) -> None:
    plot_loss([], tmp_path / "loss.png", title="nothing")
    assert (tmp_path / "loss.png").stat().st_size > 1000
