"""The Python API: load, answer, train and evaluate, as README shows them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from m2pt_cli import EvalSettings, TrainSettings, answer, evaluate, load, train
from m2pt_cli.errors import InputError, SettingsError

EXAMPLES = Path(__file__).parent.parent / "examples" / "images"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An adapter of a few steps, trained through the API."""
    folder = tmp_path_factory.mktemp("api") / "run"
    settings = TrainSettings(base="nano", data=("demo",), limit=200, max_steps=3, output_dir=folder, device="cpu")
    result = train(settings)
    assert result.output_dir == str(folder)
    assert result.steps == 3
    return result.output_dir


def test_answers_of_one_image_and_of_several(run: str) -> None:
    model, processor = load(base="nano", adapter=run, device="cpu")
    assert processor.tokenizer.eos_token is not None
    question = "What color is the circle? Answer with one word."
    paths = [EXAMPLES / "shapes.png", EXAMPLES / "digit.png"]
    both = answer(model, paths, [question])
    assert len(both) == 2
    assert answer(model, paths[:1], [question, question]) == [both[0]] * 2
    # A PIL image answers as its file does.
    assert answer(model, [Image.open(paths[0])], [question]) == both[:1]


def test_the_adapter_is_what_answers(run: str) -> None:
    question = "Describe the image."
    bare = answer(load(base="nano", device="cpu")[0], [EXAMPLES / "shapes.png"], [question])
    model, _ = load(adapter=run, device="cpu")  # the base is the adapter's own
    with model.disable_adapter():
        assert answer(model, [EXAMPLES / "shapes.png"], [question]) == bare


def test_numbers_that_do_not_fit_are_refused(run: str) -> None:
    model, _ = load(base="nano", device="cpu")
    with pytest.raises(SettingsError, match="2 images and 3 questions"):
        answer(model, [EXAMPLES / "shapes.png"] * 2, ["a"] * 3)
    with pytest.raises(SettingsError, match="0 images"):
        answer(model, [], ["a"])
    with pytest.raises(InputError, match=r"no\.png"):
        answer(model, ["no.png"], ["a"])
    with pytest.raises(SettingsError, match="not loaded by m2pt"):
        answer(object, [EXAMPLES / "shapes.png"], ["a"])


def test_evaluate_writes_and_returns_the_results(run: str, tmp_path: Path) -> None:
    result = evaluate(
        EvalSettings(bench=("demo",), adapter=(run,), limit=30, output_dir=tmp_path / "evals", device="cpu")
    )
    block = result.to_dict()["benchmarks"]["demo"]
    assert 0 <= block["accuracy"] <= 1
    assert (tmp_path / "evals" / "results.json").is_file()
