"""``m2pt count-params``: the numbers of the paper, as a table and as JSON, without importing torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from m2pt_cli.cli.app import main

KEYS = ["base", "method", "total", "trainable", "percent", "groups", "without_effect", "bytes"]
GROUPS = ["visual_prompts", "textual_prompts", "interaction", "lm_head", "vision_tower", "projector", "language_model"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["count-params", *arguments, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and captured.out.count("\n") == 1
    counts: dict[str, Any] = json.loads(captured.out)
    return counts


@pytest.mark.parametrize(
    ("arguments", "trainable", "total"),
    [
        ("--base llava-v1-7b --visual-prompts 20 --textual-prompts 10", 6_000_640, 7_045_793_792),
        ("--base llava-v1-7b", 6_000_640, 7_045_793_792),
        ("--base llava-v1-7b --visual-prompts 10 --textual-prompts 10", 5_754_880, 7_045_793_792),
        ("--base llava-v1-7b --visual-prompts 10 --textual-prompts 20", 7_065_600, 7_045_793_792),
        ("--base llava-v1-7b --train-lm-head", 137_072_640, 7_045_793_792),
        ("--base llava-v1-7b --interaction none", 1_802_240, 7_045_793_792),
        ("--base llava-v1-7b --method lora", 44_175_360, 7_045_793_792),
        ("--base llava-v1-7b --method lora --lora-rank 32", 84_152_320, 7_045_793_792),
        ("--base llava-v1-7b --method visual", 4_444_160, 7_045_793_792),
        ("--base llava-v1-7b --method textual", 8_130_560, 7_045_793_792),
        ("--base llava-v1-7b --method interaction", 4_198_400, 7_045_793_792),
        ("--base llava-1.5-7b --visual-prompts 20 --textual-prompts 10", 6_000_640, 7_063_427_072),
        ("--base llava-hf/llava-1.5-7b-hf", 6_000_640, 7_063_427_072),
        ("--base llava-1.5-7b --method lora", 60_956_672, 7_063_427_072),
        ("--base llava-1.5-13b", 7_787_520, 13_351_494_656),
    ],
)
def test_numbers(capsys: pytest.CaptureFixture[str], arguments: str, trainable: int, total: int) -> None:
    counts = run(capsys, *arguments.split())
    assert list(counts) == KEYS and list(counts["groups"]) == GROUPS
    assert (counts["trainable"], counts["total"]) == (trainable, total)
    assert sum(counts["groups"].values()) == trainable
    assert counts["percent"] == pytest.approx(100 * trainable / total)
    assert 4 * trainable < counts["bytes"] < 4 * trainable + 200_000


def test_the_base_of_the_environment(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(capsys)["base"] == "llava-1.5-7b"
    monkeypatch.setenv("M2PT_BASE", "llava-1.5-13b")
    assert run(capsys)["base"] == "llava-1.5-13b"
    assert run(capsys, "--base", "llava-v1-7b")["base"] == "llava-v1-7b"


def test_a_local_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = {"model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24, "intermediate_size": 4864}
    text |= {"num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": text}))
    counts = run(capsys, "--base", str(tmp_path), "--visual-prompts", "3", "--textual-prompts", "4")
    assert counts["trainable"] == 3 * 24 * 1024 + 4 * 24 * 896 + 896 * 1024 + 896
    # Qwen2-0.5B has 494,032,768 parameters.
    assert counts["total"] == 494_032_768 + 303_507_456 + 1024 * 896 + 896 + 896 * 896 + 896


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["count-params", "--base", "llava-v1-7b", "--train-lm-head"]) == 0
    captured = capsys.readouterr()
    for part in (
        "m2pt on llava-v1-7b",
        "visual prompts",
        "491,520",
        "textual prompts",
        "1,310,720",
        "interaction layer",
        "4,198,400",
        "lm_head",
        "131,072,000",
        "137,072,640",
        "1.95 %",
        "base: language model",
        "7,045,793,792",
    ):
        assert part in captured.out
    assert "20,480 of the visual prompts' parameters have no effect" in captured.err
    assert main(["count-params", "--base", "llava-v1-7b", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert "0.085 %" in captured.out and captured.err == ""


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A textual adapter of LLaVA v1 as PEFT saves it, one prompt a layer."""
    import numpy

    names = [f"base_model.model.model.language_model.layers.{i}.self_attn.m2pt_prompts" for i in range(32)]
    save_file({n: numpy.zeros((1, 4096), "float32") for n in names}, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "M2PT", "base_model_name_or_path": "llava-v1-7b", "num_visual_prompts": 0}
    config |= {"num_textual_prompts": 1, "interaction": "none"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_saved_adapter(capsys: pytest.CaptureFixture[str], adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = run(capsys, "--adapter", str(adapter))
    assert (counts["base"], counts["method"], counts["trainable"]) == ("llava-v1-7b", "textual", 131_072)
    assert counts["bytes"] == (adapter / "adapter_model.safetensors").stat().st_size
    monkeypatch.setenv("M2PT_ADAPTER", str(adapter))
    assert run(capsys) == counts
    assert run(capsys, "--base", "llava-1.5-7b")["method"] == "m2pt"
    assert run(capsys, "--method", "lora")["method"] == "lora"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--method", "m2tp"], 2, "Did you mean 'm2pt'"),
        (["--visual-prompts", "-3"], 2, "--visual-prompts -3"),
        (["--visual-prompts", "many"], 2, "'--visual-prompts'"),
        (["--lora-rank", "0", "--interaction", "x"], 2, "--lora-rank 0"),
        (["--visual-prompts", "0", "--textual-prompts", "0", "--interaction", "none"], 2, "nothing is left"),
        (["--base", "nanno"], 1, "Did you mean 'nano'"),
        (["--base", "somebody/llava"], 1, "somebody/llava"),
        (["--adapter", "./runs/nowhere"], 4, "no adapter folder ./runs/nowhere"),
        (["--adapter", "nobody/nothing"], 4, "no folder nobody/nothing, and"),
        (["--adapter", "x", "--method", "lora"], 2, "--method means nothing"),
    ],
)
def test_errors(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str) -> None:
    assert main(["count-params", *arguments]) == code
    assert said in capsys.readouterr().err
    assert main(["count-params", *arguments, "--json"]) == code
    captured = capsys.readouterr()
    assert captured.out == "" and said in json.loads(captured.err)["error"]["message"]


def test_an_adapter_of_another_base(capsys: pytest.CaptureFixture[str], adapter: Path) -> None:
    assert main(["count-params", "--adapter", str(adapter), "--base", "llava-1.5-13b"]) == 4
    assert "does not fit llava-1.5-13b" in capsys.readouterr().err


def test_it_is_light() -> None:
    code = (
        "import sys; from m2pt_cli.cli.app import main; main(['count-params', '--base', 'llava-1.5-7b', '--json']);"
        "print(sorted({'torch', 'transformers', 'peft', 'datasets', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["trainable"] == 6_000_640
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(("method", "kind"), [("lora", "visual"), ("full", "textual"), ("visual", "textual")])
def test_prompts_that_a_method_lacks_are_refused_as_train_does(
    method: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["count-params", "--base", "nano", "--method", method, f"--{kind}-prompts"]
    assert main([*asked, "3"]) == 2
    assert f"--method {method} has no {kind} prompts" in capsys.readouterr().err
    assert main([*asked, "0"]) == 0
