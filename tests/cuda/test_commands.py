"""Commands with ``--device``: the same answers as on a CPU, and one-line errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from m2pt_cli.cli.app import main

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "image.png"
    Image.effect_mandelbrot((20, 14), (-2, -1, 1, 1), 20).convert("RGB").save(path)
    return str(path)


@pytest.mark.parametrize("adapter", [None, "tiny"])
def test_infer_answers_as_on_a_cpu(
    adapter: str | None, image: str, tiny_base: Path, tiny_adapter: Path, device: torch.device, capsys: Captured
) -> None:
    answers = []
    for place in (str(device), "cpu"):
        arguments = ["infer", image, "what is it", "--base", str(tiny_base), "--device", place, "--dtype", "float32"]
        arguments += ["--template", "plain", "--max-new-tokens", "8"]
        assert main(arguments + (["--adapter", str(tiny_adapter)] if adapter else [])) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] and answers[0].strip()


def test_infer_in_the_devices_own_type(image: str, device: torch.device, capsys: Captured) -> None:
    """nano, in bf16 on CUDA, sees shapes and says so."""
    assert main(["infer", image, "Describe the image.", "--base", "nano", "--device", str(device), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["error"] is None and len(row["answer"].split()) >= 3


def test_eval_on_the_device(device: torch.device, tmp_path: Path, capsys: Captured) -> None:
    arguments = ["eval", "--bench", "demo", "--base", "nano", "--device", str(device), "--limit", "40", "--json"]
    assert main([*arguments, "--output-dir", str(tmp_path / "scores")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert 0 <= result["benchmarks"]["demo"]["seen"] <= 1


def test_a_device_that_is_not_there(image: str, device: torch.device, capsys: Captured) -> None:
    count = torch.cuda.device_count()
    assert main(["infer", image, "what", "--base", "nano", "--device", f"cuda:{count + 3}"]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert (f"there is no device cuda:{count + 3}" if device.type == "cuda" else "no CUDA device") in error


def test_attn_map_sees_what_it_sees_on_a_cpu(
    image: str, tiny_base: Path, tiny_adapter: Path, device: torch.device, tmp_path: Path, capsys: Captured
) -> None:
    values: list[dict[str, np.ndarray]] = []
    for place in (str(device), "cpu"):
        name = place.replace(":", "-") + str(len(values))
        arguments = ["attn-map", image, "is it a dog", "--base", str(tiny_base), "--adapter", str(tiny_adapter)]
        arguments += ["--device", place, "--dtype", "float32", "--template", "plain", "--max-new-tokens", "4", "--json"]
        arguments += ["-o", str(tmp_path / f"{name}.png"), "--values", str(tmp_path / f"{name}.npz")]
        assert main(arguments) == 0
        assert json.loads(capsys.readouterr().out) and (tmp_path / f"{name}.png").stat().st_size > 1000
        with np.load(tmp_path / f"{name}.npz") as stored:
            values.append({key: stored[key] for key in stored.files})
    assert values[0].keys() == values[1].keys()
    numbers = [key for key in values[0] if values[0][key].dtype.kind == "f"]
    assert numbers
    for key in numbers:
        np.testing.assert_allclose(values[0][key], values[1][key], atol=1e-4, err_msg=key)
