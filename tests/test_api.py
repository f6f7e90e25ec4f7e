"""The Python API: load, answer, train and evaluate, as README shows them."""

from __future__ import annotations

import contextlib
import inspect
from pathlib import Path

import pytest
from PIL import Image

import m2pt_cli
from m2pt_cli import (
    AttnMapSettings,
    EvalSettings,
    TrainSettings,
    answer,
    attention_map,
    evaluate,
    load,
    show_progress,
    train,
)
from m2pt_cli.errors import InputError, SettingsError

EXAMPLES = Path(__file__).parent.parent / "examples" / "images"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An adapter of a few steps, trained through the API."""
    folder = tmp_path_factory.mktemp("api") / "run"
    # Text for paths, one value where several may be.
    settings = TrainSettings(base="nano", data="demo", limit=200, max_steps=3, output_dir=str(folder), device="cpu")
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
    # One of either need not be a list.
    assert answer(model, str(paths[0]), question) == answer(model, Image.open(paths[0]), [question]) == both[:1]
    assert answer(model, paths, question) == both
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


def test_results_are_fed_back_and_progress_is_told(run: str, tmp_path: Path) -> None:
    told: list[object] = []
    result = train(
        TrainSettings(base="nano", data="demo", limit=64, max_steps=2, output_dir=tmp_path / "run", device="cpu"),
        progress=told.append,
    )
    names = [type(event).__name__ for event in told]
    assert names.count("Step") == 2 and names[-1] == "Finished"
    told.clear()
    scores = evaluate(
        EvalSettings(bench="demo", adapter=[result.output_dir, run], limit=8, output_dir=tmp_path / "evals"),
        progress=told.append,
    )
    assert [scored.name for scored in scores.runs] == ["run", "run-2"]
    assert "Progress" in [type(event).__name__ for event in told]
    maps = attention_map(
        AttnMapSettings(
            image=EXAMPLES / "shapes.png",
            question="What color is the circle?",
            adapter=result.output_dir,
            values=str(tmp_path / "values.json"),
        ),
        progress=told.append,
    )
    assert len(maps.runs) == 1 and (tmp_path / "values.json").is_file()


def test_progress_is_shown_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = TrainSettings(base="nano", data="demo", limit=64, max_steps=1, output_dir=tmp_path / "run", device="cpu")
    adapter = train(settings, progress=show_progress()).output_dir
    evaluate(EvalSettings(bench="demo", adapter=adapter, limit=4, output_dir=tmp_path / "e"), progress=show_progress())
    out, err = capsys.readouterr()
    assert out == "" and "training m2pt on nano" in err and "step 1/1" in err and "writing to" in err


def test_a_display_is_closed_however_the_work_ends(tmp_path: Path) -> None:
    class Display(contextlib.AbstractContextManager):  # type: ignore[type-arg]
        is_open = False

        def __enter__(self) -> Display:
            self.is_open = True
            return self

        def __exit__(self, *error: object) -> None:
            self.is_open = False

        def __call__(self, event: object) -> None:
            assert self.is_open

    display = Display()
    with pytest.raises(InputError):
        train(TrainSettings(base="nano", data="missing.json", output_dir=tmp_path / "x"), progress=display)
    assert not display.is_open


def test_the_return_of_load_has_a_type() -> None:
    signature = inspect.signature(m2pt_cli.load)
    assert signature.return_annotation == "tuple[PreTrainedModel | PeftModel, ProcessorMixin]"
