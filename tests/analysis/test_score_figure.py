"""The figure of scores: percent of the best possible score, and the same axes for all runs."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from fixtures.drawn_texts import drawn_texts
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba

from m2pt_cli.analysis.score_figure import (
    HeadlineScore,
    bars,
    category_scores,
    common,
    draw_scores,
    headline_scores,
    plot_kind,
    radar,
    radar_scores,
    require_plot_place,
)
from m2pt_cli.errors import SettingsError
from m2pt_cli.evaluation.task import Prediction
from m2pt_cli.evaluation.tasks import mme, vsr


def part(accuracy: float, n: int = 50, **more: Any) -> dict[str, Any]:
    return {"accuracy": accuracy, "interval": [accuracy / 2, 1.0], "n": n, **more}


def demo(unseen: float) -> dict[str, Any]:
    return {
        **part(0.8),
        "seen": 0.9,
        "unseen": unseen,
        "majority": {"seen": 0.4, "unseen": 0.3},
        "intervals": {"seen": [0.85, 0.95], "unseen": [0.1, 0.7]},
        "tasks": {
            "color-word": part(0.9, seen=True, majority=0.4),
            **{name: part(unseen, seen=False, majority=0.3) for name in ("pope", "vsr", "mnist")},
        },
    }


def row(category: str, question: str, correct: bool) -> Prediction:
    said = {"answer": "yes", "prediction": "yes" if correct else "no", "parsed": "yes" if correct else "no"}
    return Prediction(
        id=question, image="a.png", question_id=question[:-1], question="?", category=category, correct=correct, **said
    )


def test_points_of_mme_are_percent_of_those_its_categories_can_give() -> None:
    rows = [row("existence", "a1", True), row("existence", "a2", True)]
    rows += [row("count", "b1", True), row("count", "b2", False)]
    block = {**mme.BENCHMARK.scores(rows, "official"), "n": 4}
    assert block["perception"] == 250.0
    assert headline_scores({"mme": block}) == {"mme": HeadlineScore(62.5, None, 4, 37.5)}
    assert category_scores(block, "mme") == {
        "existence": HeadlineScore(100.0, guess=37.5),
        "count": HeadlineScore(25.0, guess=37.5),
    }


@pytest.mark.parametrize(
    ("bench", "guess"),
    [
        ("pope", 50),
        ("vsr", 50),
        ("snli-ve", 100 / 3),
        ("cifar10", 10),
        ("cifar100", 1),
        ("mnist", 10),
        ("textvqa", None),
    ],
)
def test_a_random_answer_scores_one_in_the_number_of_classes(bench: str, guess: float | None) -> None:
    block = {**part(0.5), "classes": {"a": part(0.25, n=7)}}
    assert headline_scores({bench: block})[bench].guess == guess
    assert category_scores(block, bench)["a"].guess == guess


def test_categories_come_with_interval_and_count() -> None:
    rows = [row("left of", "a1", True), row("left of", "b1", False), row("on", "c1", True)]
    block = {**vsr.BENCHMARK.scores(rows, "official"), "n": 3}
    scores = category_scores(block)
    assert [(name, score.value, score.n) for name, score in scores.items()] == [("left of", 50.0, 2), ("on", 100.0, 1)]
    assert scores["on"].interval is not None and 0 < scores["on"].interval[0] < 50 < scores["on"].interval[1] <= 100


def test_demo_has_seen_and_unseen_and_its_unseen_families() -> None:
    assert headline_scores({"demo": demo(0.5)}) == {
        "demo seen": HeadlineScore(90.0, (85.0, 95.0), 50, 40.0),
        "demo unseen": HeadlineScore(50.0, (10.0, 70.0), 150, 30.0),
    }
    assert list(category_scores(demo(0.5))) == ["pope", "vsr", "mnist"]


def test_a_radar_has_benchmarks_if_they_are_three_else_categories() -> None:
    three = {name: part(0.5) for name in ("textvqa", "snli-ve", "mnist")}
    assert list(radar_scores([three])[0]) == ["textvqa", "snli-ve", "mnist"]
    assert list(radar_scores([{"demo": demo(0.5)}])[0]) == ["pope", "vsr", "mnist"]
    two = {"snli-ve": part(0.5), "pope": {**part(0.5), "splits": {name: {"accuracy": 0.5} for name in "abc"}}}
    assert list(radar_scores([two])[0]) == ["pope: a", "pope: b", "pope: c"]
    assert len(radar_scores([{"snli-ve": part(0.5)}])[0]) == 1


def test_axes_are_those_of_all_runs() -> None:
    whole = {name: part(0.5) for name in ("textvqa", "snli-ve", "mnist", "vsr")}
    found = radar_scores([whole, {name: whole[name] for name in ("vsr", "mnist", "textvqa")}])
    assert [list(run) for run in found] == [["textvqa", "mnist", "vsr"]] * 2


def test_a_benchmark_without_a_score_has_no_axis() -> None:
    assert headline_scores({"pope": {**part(0.5), "accuracy": None, "interval": None}}) == {}


@pytest.mark.parametrize("most", [1, 2])
def test_too_many_categories_leave_those_with_most_questions(most: int) -> None:
    run = {
        "rare": HeadlineScore(1.0, None, 3),
        "common": HeadlineScore(2.0, None, 90),
        "usual": HeadlineScore(3.0, None, 40),
    }
    assert list(common([run], most=most)[0]) == ["common", "usual"][:most]


RUNS: dict[str, dict[str, Any]] = {
    "runs/a": {"demo": demo(0.5)},
    "none": {"demo": demo(0.25)},
    "_$odd$": {"demo": demo(0.9)},
}


def test_a_polygon_for_each_run_on_one_scale() -> None:
    figure = radar(RUNS)
    assert figure is not None
    [axes] = figure.axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[50.0] * 4, [25.0] * 4, [90.0] * 4, [30.0] * 4]
    assert list(axes.lines[0].get_xdata()) == pytest.approx([0, 2 * math.pi / 3, 4 * math.pi / 3, 0])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["pope", "vsr", "mnist"]
    assert axes.get_ylim() == (0, 100)
    [legend] = figure.legends
    assert [text.get_text().lstrip("\u200b") for text in legend.get_texts()] == [
        "runs/a",
        "none",
        r"_\$odd\$",
        "guess: the commonest or a random answer",
    ]


def test_nothing_is_cut_off_at_100_percent() -> None:
    figure = radar({"a": {name: part(1.0) for name in ("textvqa", "mnist", "vsr")}})
    assert figure is not None
    assert not figure.axes[0].lines[0].get_clip_on()


def test_runs_differ_in_colour_marker_and_hatch() -> None:
    figure = radar(RUNS)
    assert figure is not None
    lines = figure.axes[0].lines[:3]
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == 3
    assert len({container[0].get_hatch() for container in bars(RUNS).axes[0].containers}) == 3


def test_bars_say_n_the_guess_and_zero() -> None:
    runs = {"a": {"demo": demo(0.0)}, "b": {"demo": demo(0.5)}}
    runs["b"]["demo"]["tasks"]["vsr"]["n"] = 20
    figure = bars(runs)
    [axes] = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["demo seen (n=50)", "demo unseen (n=120–150)", "pope (n=50)", "vsr (n=20–50)", "mnist (n=50)"]
    [guesses] = [one for one in axes.collections if isinstance(one, LineCollection)]
    assert [segment[0][0] for segment in guesses.get_segments()] == [40.0, 30.0, 30.0, 30.0, 30.0]
    # A tick at zero for each bar that has no length, in the run's colour and not cut off by the axis.
    ticks = [line for line in axes.lines if list(line.get_xdata()) == [0, 0]]
    zeros = [bar for bar in axes.containers[0] if bar.get_width() == 0]
    assert len(ticks) == len(zeros) == 4
    for tick, bar in zip(ticks, zeros, strict=True):
        assert bar.get_y() < min(tick.get_ydata()) < max(tick.get_ydata()) < bar.get_y() + bar.get_height()
        assert to_rgba(tick.get_color()) == bar.get_facecolor()
        assert not tick.get_clip_on()


LONG = "runs/m2pt-nano-demo-with-a-long-name-and-many-more-words-in-it-than-fit-into-a-legend-of-seven-inches-seed"
MANY = {f"{LONG}{number}": {"demo": demo(number / 5)} for number in range(6)}
WORDY = {"a": {"own": {**part(0.5), "categories": {f"{'a category of many words ' * 5}{n}": part(0.1) for n in "ab"}}}}


@pytest.mark.parametrize("runs", [RUNS, MANY, WORDY], ids=["three", "many long names", "long categories"])
def test_no_text_overlaps_or_leaves_the_figure(runs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for figure in filter(None, (bars(runs), radar(runs))):
        assert figure.get_figwidth() == 7
        boxes = drawn_texts(figure, monkeypatch)
        for text, box in boxes:
            assert box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y0 >= -1 and box.y1 <= figure.bbox.y1 + 1, text
        for (one, first), (other, second) in itertools.combinations(boxes, 2):
            assert not first.overlaps(second), f"{one!r} lies on {other!r}"


def test_long_names_keep_what_tells_them_apart() -> None:
    [legend] = bars(MANY).legends
    names = [text.get_text() for text in legend.get_texts()][:6]
    assert len(set(names)) == 6 and all(name.endswith(f"seed{number}") for number, name in enumerate(names))


def test_bars_by_category_with_intervals() -> None:
    figure = bars({"a": {"demo": demo(0.5), "snli-ve": part(0.3)}, "b": {"snli-ve": part(0.6), "demo": demo(0.25)}})
    first, second = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == [
        "demo seen (n=50)",
        "demo unseen (n=150)",
        "pope (n=50)",
        "vsr (n=50)",
        "mnist (n=50)",
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
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["cifar100 (n=50)", "class 70 (n=70)"]


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
