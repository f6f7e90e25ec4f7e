"""None"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from m2pt_cli.settings import TrainSettings
from m2pt_cli.training.report import loss_figure, model_card, plot_loss, running_mean


def test_running_mean() -> None:
    assert running_mean([4.0, 2.0, 6.0, 0.0], share=0.5) == [4.0, 3.0, 4.0, 3.0]
    assert running_mean([1.0, 2.0]) == [1.0, 2.0]
    assert running_mean([]) == []


@pytest.mark.parametrize("validation", [[], [{"step": 5, "validation_loss": 1.0}]])
def test_draws_what_there_is(tmp_path: Path, validation: list[dict[str, float]]) -> None:
    rows = [{"step": step, "loss": 3 / step} for step in range(1, 60)]
    plot_loss([*rows, *validation], tmp_path / "loss.png", title="m2pt on nano, demo")
    with Image.open(tmp_path / "loss.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(2**20)}
    assert (8, 81, 156) in colours  # the running mean
    assert ((217, 72, 1) in colours) == bool(validation)


def test_the_axis_is_logarithmic_where_the_loss_falls_far() -> None:
    far = [{"step": step, "loss": 10.0 / step} for step in range(1, 61)]
    validation = [{"step": 30, "validation_loss": 0.5}, {"step": 60, "validation_loss": 0.2}]
    figure = loss_figure([*far, *validation], title="a")
    [axes] = figure.axes
    assert axes.get_yscale() == "log" and "logarithmic" in axes.get_ylabel()
    each, mean, validated = axes.lines
    assert list(each.get_ydata()) == [row["loss"] for row in far]
    assert list(mean.get_ydata()) == running_mean([row["loss"] for row in far])
    assert mean.get_label() == "mean of the last 3 steps"
    assert list(validated.get_xdata()) == [30, 60] and list(validated.get_ydata()) == [0.5, 0.2]
    [near] = loss_figure([{"step": step, "loss": 2.0 - step / 60} for step in range(60)], title="a").axes
    assert near.get_yscale() == "linear" and near.get_ylim()[0] == 0


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), None])
@pytest.mark.parametrize("key", ["loss", "validation_loss"])
def test_no_value_breaks_the_axis(value: float | None, key: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"step": step, "loss": 10.0 / step} for step in range(1, 61)]
    rows += [{"step": 61, key: value}, {"step": 62, "validation_loss": 1.0}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = loss_figure(rows, title="costs $5_{x}")
        figure.canvas.draw()
        plot_loss(rows, tmp_path / "loss.png", title="a")
    [axes] = figure.axes
    assert all(math.isfinite(limit) for limit in axes.get_ylim())
    assert axes.get_ylim()[1] > 9
    assert axes.get_title() == "costs $5_{x}"
    drawn = [number for line in axes.lines for number in line.get_ydata()]
    assert all(math.isfinite(number) for number in drawn)
    if value is not None and value < 0:
        assert axes.get_ylim()[0] < 0 or axes.get_yscale() == "log"


def test_a_single_step_is_seen() -> None:
    [axes] = loss_figure([{"step": 1, "loss": 2.0}], title="a").axes
    assert axes.lines[0].get_marker() == "."
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["each step"]


def test_no_rows_is_an_empty_picture(tmp_path: Path) -> None:
    plot_loss([], tmp_path / "loss.png", title="nothing")
    assert (tmp_path / "loss.png").stat().st_size > 1000


def card(base: str = "llava-hf/llava-1.5-7b-hf", *, validation: float | None = None, **values: Any) -> str:
    options: dict[str, Any] = {"data": ("demo",), "learning_rate": 7e-4, "epochs": 3.0, "template": "vicuna_v1"}
    return model_card(
        TrainSettings(**(options | values)),
        base=base,
        data={"description": "demo (500 samples)", "samples": 450, "validation": 50, "skipped": 0},
        result={"steps": 30, "best_step": 20, "loss": 0.25, "validation": validation, "seconds": 75.0, "bytes": 2**20},
        parts={"visual_prompts": 491_520, "textual_prompts": 1_310_720, "interaction": 4_198_400},
        total=7_063_427_072,
        versions={"m2pt": "0.1", "torch": "2.13"},
    )


def test_front_matter_and_facts() -> None:
    text = card(validation=0.5)
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == "llava-hf/llava-1.5-7b-hf" and front["library_name"] == "peft"
    assert front["tags"] == ["m2pt", "llava"]
    assert yaml.safe_load(card(method="lora").split("---")[1])["tags"] == ["m2pt", "llava", "lora"]
    assert "6,000,640 parameters, 0.085 % of the 7,063,427,072" in text
    assert "450 training samples, 50 held out for validation." in text
    assert "| validation loss | 0.5000 |" in text and "| training loss (last tenth) | 0.2500 |" in text
    assert "| `--learning-rate` | 0.0007 |" in text and "| visual prompts | 491,520 |" in text
    assert "lora-rank" not in text


@pytest.mark.parametrize(
    ("method", "base", "line"),
    [
        ("m2pt", "llava-hf/llava-1.5-7b-hf", "import m2pt_cli.method"),
        ("m2pt", "nano", 'load(base="nano", adapter=".")'),
        ("lora", "llava-hf/llava-1.5-7b-hf", "PeftModel.from_pretrained"),
        ("full", "llava-hf/llava-1.5-7b-hf", "--base ."),
    ],
)
def test_how_to_load_it(method: str, base: str, line: str) -> None:
    text = card(base, method=method)
    assert line in text
    code = [block.removeprefix("python\n") for block in text.split("```")[1::2] if block.startswith("python\n")]
    assert len(code) == (method != "full")
    for block in code:
        compile(block, "card", "exec")
        # The method must be registered before an adapter of it is read.
        if method == "m2pt" and base != "nano":
            assert block.index("import m2pt_cli.method") < block.index("from_pretrained")
