"""What goes wrong in a benchmark is left out and named; what else was measured is printed and written."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import answering
import measure
import pytest
import summary
import torch
import train_step
from fixtures.models import tiny_llava
from measure import in_rounds, interleaved, setting
from train_step import FULL, VARIANTS, make_batch, prepare, time_full

from m2pt_cli.generation.engine import Question, Reply

CPU = torch.device("cpu")


def test_rounds_go_on_without_what_failed() -> None:
    calls: list[str] = []

    def second() -> float:
        calls.append("second")
        if calls.count("second") == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return 2.0

    timers = {"first": lambda: 1.0, "second": second}
    left_out: dict[str, str] = {}
    assert in_rounds(timers, rounds=3, warmup=1, left_out=left_out) == {"first": [1.0] * 3}
    assert left_out == {"second": "does not fit"} and len(calls) == 2
    calls.clear()
    with pytest.raises(torch.OutOfMemoryError):
        in_rounds(timers, rounds=3, warmup=1)


def test_rounds_end_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow() -> float:
        time.sleep(0.05)
        return 0.05

    monkeypatch.setenv("M2PT_UNTIL", str(time.time() - 5))
    assert len(in_rounds({"slow": slow}, rounds=9, warmup=1)["slow"]) == 1, "one in any case"
    monkeypatch.setenv("M2PT_UNTIL", str(time.time() + 1.0))
    assert 2 <= len(in_rounds({"slow": slow}, rounds=99, warmup=1, share=0.5)["slow"]) <= 9
    monkeypatch.delenv("M2PT_UNTIL")
    assert len(in_rounds({"slow": slow}, rounds=3, warmup=0)["slow"]) == 3


def test_steps_that_fail_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not fit when it is made, one that a kernel refuses, one that no longer fits beside the others."""
    original, runs = train_step.step_of, []

    def step_of(name: str, base: Any, batch: dict[str, torch.Tensor]) -> Any:
        if name == FULL and not fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 25 GiB.")
        if name == "m2pt, concatenation":
            raise RuntimeError("no kernel for this\nand more")
        step = original(name, base, batch)

        def watched() -> object:
            runs.append(name)
            if name == "lora, our loss" and runs.count(name) == 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
            return step()

        return watched

    monkeypatch.setattr(train_step, "step_of", step_of)
    base = tiny_llava()
    batch = make_batch(base, 2)
    fits, left_out = False, {}
    names = ["m2pt", "m2pt, concatenation", FULL, "forward alone", "lora, our loss"]
    steps, peaks = prepare(names, base, batch, left_out)
    assert list(steps) == ["m2pt", "forward alone", "lora, our loss"] and peaks == {}
    assert left_out == {"m2pt, concatenation": "RuntimeError: no kernel for this", FULL: "does not fit"}
    seconds = interleaved(steps, rounds=2, warmup=1, device=base.device, left_out=left_out)
    assert {name: len(values) for name, values in seconds.items()} == {"m2pt": 2, "forward alone": 2}
    assert left_out["lora, our loss"] == "does not fit"

    assert time_full(steps, peaks, base, batch, 2, left_out) == {}
    fits = True
    runs.clear()
    pair = time_full(steps, peaks, base, batch, 2, {})
    assert [len(pair[name]) for name in ("m2pt", FULL)] == [2, 2]


def test_peaks_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peak is what a step takes while it runs and what it holds before, above all that was there."""
    held, peak = [1000], [0]

    def step_of(name: str, base: Any, batch: dict[str, torch.Tensor]) -> Any:
        held[0] += 70  # a copy of the weights

        def step() -> None:
            peak[0] = max(peak[0], held[0] + 500)

        return step

    monkeypatch.setattr(train_step, "step_of", step_of)
    cuda = {
        "memory_allocated": lambda device: held[0],
        "max_memory_allocated": lambda device: peak[0],
        "reset_peak_memory_stats": lambda device: peak.__setitem__(0, held[0]),
        "synchronize": lambda device: None,
    }
    for name, function in cuda.items():
        monkeypatch.setattr(torch.cuda, name, function)
    base = type("Base", (), {"device": torch.device("cuda", 0)})
    _, peaks = prepare(["m2pt", "forward alone"], base, {}, {})  # type: ignore[arg-type]
    assert peaks == {"m2pt": 570, "forward alone": 570}


@pytest.mark.parametrize("kind", ["no kernel", "no memory"])
def test_a_script_prints_what_it_has(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """And ends with an error, unless all that is wrong is that a row does not fit."""
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


def test_a_machine_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit is then what ``M2PT_COMMIT`` says; with git it is that of the files here, wherever one stands."""
    monkeypatch.setenv("M2PT_COMMIT", "said")
    asked = []

    def run(command: list[str], cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
        asked.append(cwd)
        if not there:
            raise FileNotFoundError("git")
        return subprocess.CompletedProcess(command, int("diff" in command), "abc1234\n")

    monkeypatch.setattr(subprocess, "run", run)
    there = False
    assert setting(CPU)["commit"] == "said"
    there = True
    assert setting(CPU)["commit"] == "abc1234-dirty"
    assert {(folder / "benchmarks" / "measure.py").is_file() for folder in asked} == {True}


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
