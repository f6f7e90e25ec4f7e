"""Benchmarks report failures: they name what failed, keep the other results and never time a failed answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import answering
import measure
import pytest
import summary
import torch
import train_step
from fixtures.models import tiny_llava
from train_step import FULL, VARIANTS

from m2pt_cli.generation.engine import Question, Reply


@pytest.mark.parametrize("kind", ["no kernel", "no memory"])
def test_a_script_prints_what_it_has(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It exits with an error unless the only failures are rows that do not fit in memory."""
    original = train_step.step_of

    def step_of(name: str, base: Any, batch: dict[str, torch.Tensor]) -> Any:
        if name == "m2pt, concatenation":
            raise RuntimeError("no\nkernel") if kind == "no kernel" else torch.OutOfMemoryError("CUDA out of memory.")
        return original(name, base, batch)

    monkeypatch.setattr(train_step, "step_of", step_of)
    monkeypatch.setattr(train_step, "build", lambda geometry, device, dtype: tiny_llava())
    monkeypatch.setattr(train_step, "in_child", lambda work: 2**20)
    monkeypatch.setattr(train_step, "matmul_ceiling", lambda device, dtype: 1e9)
    monkeypatch.setattr(train_step, "write", lambda name, content: measure.write(name, content, tmp_path))
    kept = ("m2pt", "m2pt, concatenation", "forward alone")
    skipped = [f"--skip={name}" for name in VARIANTS if name not in kept]
    monkeypatch.setattr("sys.argv", ["train_step.py", "--batch=2", "--rounds=2", "--warmup=0", *skipped])
    text = {"no kernel": "RuntimeError: no", "no memory": "does not fit"}[kind]
    if kind == "no kernel":
        with pytest.raises(SystemExit, match="m2pt, concatenation: RuntimeError: no"):
            train_step.main()
    else:
        train_step.main()
    rows = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert text in rows["m2pt, concatenation"]
    assert rows["m2pt"].split()[1].isdigit() and " 1.00 " in rows["m2pt"] and " ms " in rows["forward alone"]
    stored = json.loads((tmp_path / "train_step-small-cpu.json").read_text())
    assert stored["left_out"] == {"m2pt, concatenation": text}
    assert set(stored["seconds"]) == {"m2pt", "forward alone"}


def test_a_question_that_fails_is_no_fast_answer() -> None:
    """The engine goes on after a failure; the benchmark must not time it."""
    questions = [Question(str(number), "what") for number in range(2)]

    class Engine:
        def answer(self, asked: list[Question]) -> list[Reply]:
            return [Reply(asked[1], "w7"), Reply(asked[0], text, None if text else "CUDA out of memory.")]

    text: str | None = "w5"
    assert answering.engine_answers(Engine(), questions) == ["w5", "w7"]  # type: ignore[arg-type]
    text = None
    with pytest.raises(RuntimeError, match=r"question 0 failed: CUDA out of memory\."):
        answering.engine_answers(Engine(), questions)  # type: ignore[arg-type]


def test_the_table_says_what_does_not_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(summary, "RESULTS", tmp_path)
    content = {
        "setting": {"device": "H", "torch": "2", "transformers": "5", "commit": None},
        "seconds": {"m2pt": [0.3]},
    }
    content |= {"m2pt_over": {"forward alone": {"median": 2.5}}, "left_out": {FULL: "does not fit"}}
    measure.write("train_step-small-cuda", content, tmp_path)
    rows = {figure.name: figure.row("cuda") for figure in summary.figures(["small"], "small", "small", ())}
    assert rows["small: m2pt / forward"][1:4] == ["2.5", "<= 2.4", "missed"]
    assert rows["small: m2pt / full fine-tuning step"][1] == "does not fit"
    assert rows["small: m2pt / usual LoRA step"][1] == rows["mme: all questions"][1] == "not measured"
