"""Several adapters in one evaluation, retrained adapters, and a judge of the answers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from fixtures.tiny_base import write_tiny_adapter, write_tiny_base

from m2pt_cli.errors import AdapterError, SettingsError
from m2pt_cli.evaluation.events import Notice, Progress
from m2pt_cli.evaluation.judge import Verdicts, judge_prompt
from m2pt_cli.evaluation.run import run_evaluation
from m2pt_cli.evaluation.task import Prediction, Score, TaskOptions
from m2pt_cli.settings import EvalSettings


@pytest.fixture(scope="module")
def adapters(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    kinds: dict[str, dict[str, Any]] = {
        "patches": {},
        "official": {"visual_tokens": "official"},
        "lora": {"method": "lora"},
    }
    return {name: write_tiny_adapter(folder / name, tiny_base, **options) for name, options in kinds.items()}


def _settings(questions: Path, output_dir: Path, **changes: Any) -> EvalSettings:
    values: dict[str, Any] = {"bench": (str(questions),), "output_dir": output_dir, "template": "plain"}
    return EvalSettings(**{**values, "max_new_tokens": 4, "device": "cpu", **changes})


def _said(folder: Path, name: str = "noise") -> list[str]:
    lines = (folder / f"predictions-{name}.jsonl").read_text().splitlines()
    return [json.loads(line)["prediction"] for line in lines]


def test_each_adapter_answers_as_it_does_alone(
    tiny_base: Path, questions: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    """Adapters of several kinds, one after the other on one base, and the bare base last: none leaves a trace."""
    names = [*(str(folder) for folder in adapters.values()), "none"]
    together = tmp_path / "together"
    result = run_evaluation(_settings(questions, together, base=str(tiny_base), adapter=tuple(names)))
    folders = {run.name: together / run.name for run in result.runs}
    assert list(folders) == ["patches", "official", "lora", "tiny"]
    for name, adapter in zip(folders, names, strict=True):
        alone = tmp_path / f"alone-{name}"
        run_evaluation(_settings(questions, alone, base=str(tiny_base), adapter=(adapter,)))
        assert _said(folders[name]) == _said(alone)
    assert len({tuple(_said(folder)) for folder in folders.values()}) == 4
    content = json.loads((together / "results.json").read_text())
    assert list(content) == ["runs"] and [run["adapter"] and run["adapter"]["name"] for run in content["runs"]] == [
        "patches",
        "official",
        "lora",
        None,
    ]
    assert [run["name"] for run in content["runs"]] == ["patches", "official", "lora", "tiny"]
    # One of them alone goes on in its own folder; in the folder of all it is told where.
    with pytest.raises(SettingsError, match="holds 4 evaluations, each in a folder of its own: lora, official"):
        run_evaluation(_settings(questions, together, base=str(tiny_base), adapter=(names[2],)))
    again = run_evaluation(_settings(questions, folders["lora"], base=str(tiny_base), adapter=(names[2],)))
    assert again.runs[0].resumed == 36
    assert content["runs"][0] == json.loads((folders["patches"] / "results.json").read_text())
    assert content["runs"][1]["settings"]["visual_tokens"] == "official"
    # The base is the adapter's own where none is named.
    own = run_evaluation(_settings(questions, tmp_path / "own", adapter=(names[0],)))
    assert own.runs[0].base == str(tiny_base.resolve())


def test_a_retrained_adapter_is_never_served_old_answers(tiny_base: Path, questions: Path, tmp_path: Path) -> None:
    adapter = write_tiny_adapter(tmp_path / "adapter", tiny_base)
    settings = _settings(questions, tmp_path / "out", adapter=(str(adapter),))
    run_evaluation(settings)
    before = _said(tmp_path / "out")
    write_tiny_adapter(adapter, tiny_base, seed=2)
    with pytest.raises(SettingsError, match="adapter was"):
        run_evaluation(settings)
    result = run_evaluation(_settings(questions, tmp_path / "out", adapter=(str(adapter),), overwrite=True))
    assert result.runs[0].resumed == 0 and _said(tmp_path / "out") != before


def test_an_adapter_of_another_base_is_refused_before_anything_is_written(
    adapters: dict[str, Path], questions: Path, tmp_path: Path
) -> None:
    other = write_tiny_base(tmp_path / "other", seed=5)
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{")
    settings = _settings(broken, tmp_path / "out", base=str(other))
    with pytest.raises(AdapterError, match="was trained on"):  # and before the questions are read
        run_evaluation(dataclasses.replace(settings, adapter=(str(adapters["patches"]),)))
    assert not (tmp_path / "out").exists()


def test_words_that_differ_from_the_training_are_warned_about(
    adapters: dict[str, Path], questions: Path, tmp_path: Path
) -> None:
    events: list[Notice | Progress] = []
    settings = _settings(questions, tmp_path / "out", adapter=(str(adapters["patches"]),), template="vicuna_v1")
    run_evaluation(settings, events=events.append)
    warnings = [event.text for event in events if isinstance(event, Notice) and event.is_warning]
    assert any("--template vicuna_v1 differs from plain" in text for text in warnings)


def test_the_judge_is_asked_about_every_answer(tiny_base: Path, questions: Path, tmp_path: Path) -> None:
    """A tiny LLaVA judges: its verdicts are kept, resumed, and read from what it adds alone."""
    out = tmp_path / "out"
    settings = _settings(questions, out, base=str(tiny_base), judge=str(tiny_base), limit=12)
    run = run_evaluation(settings).runs[0]
    verdicts = [json.loads(line) for line in (out / "predictions-noise-judge.jsonl").read_text().splitlines()]
    assert len(verdicts) == 12 and all("Reference answer: yes" in row["question"] for row in verdicts)
    judge = run.benchmarks["noise"]["judge"]
    assert judge["n"] == 12 and judge["accuracy"] == sum(row["correct"] for row in verdicts) / 12
    assert 0 <= judge["agreement"] <= 1 and judge["name"] == str(tiny_base) and run.scored_by == "judge"
    # The prompt holds yes and no; a verdict is not read from it.
    assert not any("Answer yes or no" in (row["prediction"] or "") for row in verdicts)
    assert judge["unread"] == sum(row["parsed"] is None for row in verdicts)
    assert run_evaluation(settings).runs[0].benchmarks["noise"]["judge"] == judge


def test_a_plain_language_model_judges_as_it_generates(tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from m2pt_cli.evaluation.judge_run import TextEngine, open_judge
    from m2pt_cli.generation.engine import Question

    write_tiny_base(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.5)
    model.eval().save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    engine = open_judge(str(tmp_path / "judge"), device="cpu", dtype="auto", report=lambda text: None)
    assert isinstance(engine, TextEngine)
    texts = ["is it a dog", "what is the image with the red cat", "one two three"]
    questions = [Question(str(n), text, (), 5) for n, text in enumerate(texts)]
    replies = list(engine.answer(questions, known=lambda question: question.id == "1"))
    assert [reply.question.id for reply in replies] == ["0", "2"]
    for reply in replies:
        prompt = tokenizer(
            "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
            f"detailed, and polite answers to the user's questions. USER: {reply.question.text} ASSISTANT:",
            return_tensors="pt",
            add_special_tokens=False,
        )["input_ids"]
        out = model.generate(prompt, max_new_tokens=5, do_sample=False)
        assert reply.text == tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True).strip()


def test_verdicts_are_scored_by_the_judge_and_compared_with_the_rule() -> None:
    rows = [
        Prediction(f"{n}#0", str(n), split, None, "Is it?", ["yes", "yes", "yep"], "Yes").marked(Score("yes", right))
        for n, (split, right) in enumerate([("random", True), ("random", False), ("popular", True)])
    ]
    assert "Reference answer: yes / yep\nPrediction: Yes" in judge_prompt(rows[0])
    verdicts = Verdicts("pope", [*rows, Prediction("x#0", "x", None, None, "?", "a", None, error="broken")])
    said = ["Yes, it does", "no", "hm"]
    judged = [
        row.marked(verdicts.mark(row, "official"))
        for row in (
            Prediction(item.id, item.question_id, item.category, None, item.question, item.answer, text)
            for item, text in zip(verdicts.items(TaskOptions()), said, strict=True)
        )
    ]
    scores = verdicts.scores(judged, "official")
    # Two splits: one half right, one not at all.
    assert scores["accuracy"] == 0.25 and scores["unread"] == 1 and scores["n"] == 3
    assert scores["agreement"] == pytest.approx(2 / 3)
