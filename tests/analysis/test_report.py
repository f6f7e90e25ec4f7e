"""Figures of scores: what is drawn is what was scored, and files are this command's own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from m2pt_cli.analysis.report import bars, draw_scores, plot_kind, radar, require_plot_place
from m2pt_cli.errors import SettingsError

from .test_scores import demo, part

RUNS: dict[str, dict[str, Any]] = {
    "runs/a": {"demo": demo(0.5)},
    "none": {"demo": demo(0.25)},
    "_$odd$": {"demo": demo(0.9)},
}


def test_a_polygon_for_each_run_on_one_scale() -> None:
    figure = radar(RUNS)
    assert figure is not None
    [axes] = figure.axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[50.0] * 4, [25.0] * 4, [90.0] * 4]
    assert list(axes.lines[0].get_xdata()) == pytest.approx([0, 2 * math.pi / 3, 4 * math.pi / 3, 0])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["pope", "vsr", "mnist"]
    assert axes.get_ylim() == (0, 100)
    [legend] = figure.legends
    assert [text.get_text().lstrip("\u200b") for text in legend.get_texts()] == ["runs/a", "none", r"_\$odd\$"]


def test_runs_differ_in_colour_marker_and_hatch() -> None:
    figure = radar(RUNS)
    assert figure is not None
    lines = figure.axes[0].lines
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == 3
    assert len({container[0].get_hatch() for container in bars(RUNS).axes[0].containers}) == 3


def test_bars_by_category_with_intervals() -> None:
    figure = bars({"a": {"demo": demo(0.5), "snli-ve": part(0.3)}, "b": {"snli-ve": part(0.6), "demo": demo(0.25)}})
    first, second = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == [
        "demo seen",
        "demo unseen",
        "pope",
        "vsr",
        "mnist",
    ]
    assert [[bar.get_width() for bar in run] for run in first.containers] == [
        [90.0, 50.0, 50.0, 50.0, 50.0],
        [90.0, 25.0, 25.0, 25.0, 25.0],
    ]
    assert [tuple(line.get_xdata()) for line in second.lines] == [(15.0, 100.0), (30.0, 100.0)]
    assert [text.get_text() for text in second.texts] == ["30.0", "60.0"]
    assert second.get_xlabel().endswith("; lines: 95 % interval")


def test_many_categories_are_cut_and_the_title_says_so() -> None:
    classes = {f"class {number}": part(0.5, n=number) for number in range(100)}
    [axes] = bars({"a": {"cifar100": {**part(0.5), "classes": classes}}}).axes
    assert axes.get_title(loc="left") == "cifar100 (30 of 100 categories)"
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["cifar100", "class 70"]


@pytest.mark.parametrize("name", ["radar.png", "my-Radar.svg", "bars.pdf", "scores.png"])
def test_the_name_says_which_and_the_file_is_taken_for_our_own(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    assert plot_kind(file) == ("radar" if "radar" in name.lower() else "bars")
    require_plot_place(file)
    assert draw_scores(RUNS, file) is None
    content = file.read_bytes()
    require_plot_place(file)
    assert draw_scores(RUNS, file) is None
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert file.read_bytes() == content


def test_a_radar_of_too_few_scores_becomes_bars_and_says_so(tmp_path: Path) -> None:
    note = draw_scores({"a": {"snli-ve": part(0.3)}}, tmp_path / "radar.png")
    assert note is not None and "needs 3" in note and "bars" in note
    assert (tmp_path / "radar.png").stat().st_size > 1000


def test_files_that_are_not_ours_are_left_alone(tmp_path: Path) -> None:
    foreign = tmp_path / "photo.png"
    foreign.write_bytes(b"\x89PNG holiday")
    for file, said in (
        (foreign, "is no figure of m2pt eval"),
        (tmp_path / "a.jpg", "ends in .png"),
        (tmp_path / "none" / "a.png", "there is no folder"),
    ):
        with pytest.raises(SettingsError, match=said):
            require_plot_place(file)
