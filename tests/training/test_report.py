"""None"""

from __future__ import annotations

import math
import shlex
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from m2pt_cli.cli.app import main
from m2pt_cli.models import catalog
from m2pt_cli.settings import TrainSettings
from m2pt_cli.training.report import hub_datasets, loss_figure, model_card, plot_loss, running_mean
from m2pt_cli.training.run import run_training


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


BASE = "llava-hf/llava-1.5-7b-hf"
RESULT = {
    "steps": 30, "best_step": 20, "loss": 0.25, "validation": 0.5, "seconds": 75.0, "bytes": 24_000_000,
    "parts": {"visual_prompts": 491_520, "textual_prompts": 1_310_720, "interaction": 4_198_400},
    "total": 7_063_427_072, "answers": [],
}  # fmt: skip


def card(
    base: str = BASE,
    *,
    base_models: tuple[str, ...] = (BASE,),
    answers: Any = (),
    model_type: str = "llava",
    **values: Any,
) -> str:
    options: dict[str, Any] = {"data": ("demo",), "learning_rate": 7e-4, "epochs": 3.0, "template": "vicuna_v1"}
    return model_card(
        TrainSettings(**(options | values)),
        base=base,
        base_models=base_models,
        model_type=model_type,
        data={"description": "demo (500 samples)", "samples": 450, "validation": 50, "skipped": 0},
        result=RESULT | {"answers": answers},
        versions={"m2pt": "0.1", "torch": "2.13"},
    )


def front(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text.split("---")[1])
    return found


def test_front_matter_and_facts() -> None:
    text = card()
    assert front(text)["base_model"] == BASE and front(text)["library_name"] == "peft"
    assert "license" not in front(text) and "## Licence" in text  # the author's choice
    assert front(text)["tags"] == ["m2pt", "llava"]
    assert front(card(method="lora"))["tags"] == ["m2pt", "llava", "lora"]
    assert front(card(model_type="idefics3"))["tags"] == ["m2pt", "idefics3"]
    assert "6,000,640 parameters, 0.085 % of the 7,063,427,072" in text
    assert "450 training samples, 50 held out for validation." in text
    assert "| validation loss | 0.5000 |" in text and "| training loss (last tenth) | 0.2500 |" in text
    assert "| `--learning-rate` | 0.0007 |" in text and "| visual prompts | 491,520 |" in text
    assert "| size | 24.0 MB |" in text
    assert "lora-rank" not in text
    assert "@inproceedings{wang2024m2pt" in text and "@inproceedings" not in card(method="lora")


def test_only_what_is_on_the_hub_is_named_to_it() -> None:
    text = card("nano", base_models=())
    assert "base_model" not in front(text) and "(the small model that is embedded in m2pt_cli)" in text
    assert catalog.entry_of("nano").hub_ids == ()
    assert catalog.entry_of("llava-1.5-7b").hub_ids == (BASE,)
    assert len(catalog.entry_of("llava-v1-7b").hub_ids) == 3
    assert "/home/somebody" not in card("/home/somebody/models/mine", base_models=())
    assert hub_datasets(("demo", "vision-flan", "a/b:part", "a/b", "mine.json", "x/mine.json")) == [
        "Vision-Flan/vision-flan_191-task_1k",
        "a/b",
    ]
    assert front(card(data=("vision-flan",)))["datasets"] == ["Vision-Flan/vision-flan_191-task_1k"]


def test_sample_answers_are_cells_and_nothing_else() -> None:
    said = {"image": "a.png", "question": "What | is\nthis?", "answer": "<b>a</b> [link](x) \x1b[31m"}
    row = next(line for line in card(answers=[said]).splitlines() if line.startswith("| a.png"))
    assert row == r"| a.png | What \| is this? | \<b\>a\</b\> \[link\](x) \[31m |"
    assert "Sample answers" not in card()


def test_a_whole_model_is_a_base() -> None:
    text = card(method="full")
    assert "--base ." in text and "--adapter" not in text and front(text)["library_name"] == "transformers"


@pytest.mark.parametrize("method", ["m2pt", "lora", "full"])
def test_every_way_to_load_it_works(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card's command and its Python, as they stand there, run in the folder of a run on nano."""
    settings = TrainSettings(
        base="nano", data=("demo",), method=method, limit=64, max_steps=1, output_dir=tmp_path / "run", device="cpu"
    )
    run_training(settings)
    monkeypatch.chdir(tmp_path / "run")
    Image.new("RGB", (64, 64), "white").save("image.jpg")
    text = Path("README.md").read_text()
    blocks = text.split("```")[1::2]
    python = [block.removeprefix("python\n") for block in blocks if block.startswith("python\n")]
    assert len(python) == (1 if method == "full" else 2)
    for code in python:
        names: dict[str, Any] = {}
        exec(code, names)
        assert names["model"].get_input_embeddings() is not None
    if method != "full":
        assert type(names["model"]).__name__ == "PeftModel"
        changed = {name for name, p in names["model"].named_parameters() if "m2pt" in name or "lora" in name}
        assert changed
    command = next(block for block in blocks if block.startswith("bash\n")).removeprefix("bash\n").strip()
    assert main(shlex.split(command)[1:]) == 0
    answers = yaml.safe_load(Path("run.yaml").read_text())["result"]["answers"]
    assert len(answers) == 3 and all(row["answer"] and row["question"] for row in answers)
    assert all(f"| {row['image']} |" in text for row in answers)
