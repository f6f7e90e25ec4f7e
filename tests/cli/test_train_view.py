"""None"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from m2pt_cli.cli import train_view as progress
from m2pt_cli.cli.output import Output
from m2pt_cli.cli.train_view import TrainProgress, sparkline
from m2pt_cli.training.events import Finished, Notice, Saved, Started, Step, Validated

STARTED = Started(
    output_dir=Path("runs/x"), method="m2pt", base="nano", device="cpu", steps=40, first_step=0, samples=100,
    validation=5, trainable=20_000, total=2_000_000, passes=6.4,
)  # fmt: skip
FINISHED = Finished(
    output_dir=Path("runs/x"), steps=40, best_step=20, loss=0.5, validation=0.75,
    parts={"visual_prompts": 3072, "textual_prompts": 5120, "interaction": 0}, total=2_000_000, seconds=75.2,
    tokens=75_200, memory=3 * 2**20, bytes=5000,
)  # fmt: skip


def step(number: int) -> Step:
    return Step(
        step=number, epoch=number / 20, loss=4 / number, learning_rate=0.01, grad_norm=1.0, tokens=100 * number,
        seconds=0.5 * number, memory=2**30,
    )  # fmt: skip


def show(output: Output, *, end: bool = True) -> None:
    with TrainProgress(output) as view:
        view(Notice("output directory: runs/x"))
        view(STARTED)
        for number in range(1, 41):
            view(step(number))
            if number == 20:
                view(Validated(step=20, loss=0.8, is_best=True))
                view(Saved(step=20, folder=Path("runs/x/checkpoint-20")))
        if end:
            view(FINISHED)


def test_plain_lines_off_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    show(Output())
    out, err = capsys.readouterr()
    assert out == "" and "\x1b" not in err
    lines = err.splitlines()
    assert lines[0] == "output directory: runs/x"
    assert "40 steps, 100 samples and 5 for validation (6.4 passes), 20,000 of 2,000,000 parameters (1 %)" in lines[1]
    assert "step 20: validation loss 0.8000, the best so far" in lines
    progress_lines = [line for line in lines if line.startswith("step") and "loss" in line and "tokens/s" in line]
    assert 3 <= len(progress_lines) <= 8  # a second a step: one line for several of them
    assert "tokens/s 200" in progress_lines[0] and "memory 1.1 GB" in progress_lines[0]
    assert "left 0:" in progress_lines[0] and progress_lines[-1].startswith("step 40/40")
    assert any("visual prompts" in line and "3,072" in line for line in lines)
    assert any("trained in all" in line and "8,192 (0.41 %)" in line for line in lines)
    assert any("time" in line and "1:15" in line for line in lines)
    assert not any("interaction" in line for line in lines)


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    show(Output(quiet=True))
    assert capsys.readouterr() == ("", "")


def test_live_view_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_DRAW_EVERY", 0.0)
    monkeypatch.setattr(Output, "live", property(lambda self: True))
    show(Output())
    out, err = capsys.readouterr()
    assert out == ""
    assert "next: m2pt infer IMAGE" in err and "--adapter runs/x" in err
    assert "loss 0.1054 (mean of 5 steps)" in err  # of 4/36 to 4/40
    assert "█" in err and "step 40/40" in err and "100 %" in err and "validation 0.8000" in err


def test_a_resumed_run_shows_the_whole_curve_and_no_false_speed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_DRAW_EVERY", 0.0)
    monkeypatch.setattr(Output, "live", property(lambda self: True))
    with TrainProgress(Output()) as view:
        view(dataclasses.replace(STARTED, first_step=30, losses=(8.0,) * 29 + (1.0,)))
        view(step(31))
        assert view._losses == [8.0] * 29 + [1.0, 4 / 31]
        assert "tokens/s" not in view._facts()
        view(step(32))
        assert view._facts()["tokens/s"] == "200" and view._facts()["left"] == "0:04"
    capsys.readouterr()


def test_sparkline() -> None:
    assert sparkline([], 10) == ""
    assert sparkline([1.0], 10) == "▁"
    assert sparkline([8.0, 1.0], 10) == "█▁"
    assert sparkline([2.0**n for n in range(8)], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0.0, 1.0], 2) == "▁█"
    assert len(sparkline([float(n % 7) for n in range(1000)], 50)) == 50
