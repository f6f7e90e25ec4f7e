from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures import official_layout as layout

import m2pt_cli
from m2pt_cli.cli.app import main

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the parts of a base, and a checkpoint."""
    folder = layout.write_parts(tmp_path_factory.mktemp("import"))
    layout.write_shards(folder / "official", layout.official_tensors())
    return folder


@pytest.fixture(autouse=True)
def _here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def parts(output_dir: str) -> list[str]:
    given = ["--vicuna", "vicuna", "--clip", "clip", "--projector", "projector/mm_projector.bin"]
    return ["import", *given, "--output-dir", output_dir]


def test_from_parts_to_answers(capsys: Captured, place: Path) -> None:
    assert main(parts("base")) == 0
    out, err = capsys.readouterr()
    assert out == "base\n" and err == "writing 121 tensors, 1.6 MB, to base/model.safetensors\n"
    assert main(["import", "official", "--base", "base", "--output-dir", "runs/adapter", "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    keys = ["output_dir", "kind", "base", "visual_prompts", "textual_prompts", "lm_head", "trainable", "bytes"]
    assert list(document) == keys and err == ""
    assert (document["kind"], document["visual_prompts"], document["textual_prompts"]) == ("adapter", 3, 5)
    from PIL import Image

    Image.new("RGB", (40, 32), "red").save(place / "red.png")
    # The adapter names its base: nothing more is needed to ask it.
    asked = ["infer", "red.png", "is the", "--adapter", "runs/adapter", "--device", "cpu", "--max-new-tokens", "4"]
    assert main([*asked, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["error"] is None and answer["adapter"] == "runs/adapter"
    assert main(["count-params", "--adapter", "runs/adapter", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["trainable"] == document["trainable"] and counts["bytes"] == document["bytes"]
    assert counts["groups"]["lm_head"] == 0 and counts["without_effect"] == 64


def test_a_base_in_json(capsys: Captured) -> None:
    assert main([*parts("second"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "base" and document["lm_head"] is None and document["base"] == "second"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "nothing to import"),
        (["official"], 2, "--output-dir is missing"),
        (["official", "--output-dir", "clip"], 2, "--output-dir clip is not empty"),
        (["official", "--output-dir", "clip/config.json"], 2, "is a file"),
        (["official", "--output-dir", "clip/config.json/x"], 2, "can't be written"),
        (["official", "--clip", "clip", "--output-dir", "x"], 2, "OFFICIAL is for an adapter"),
        (["--clip", "clip", "--base", "nano", "--output-dir", "x"], 2, "--base is for an adapter"),
        (["oficial/x", "--output-dir", "x"], 4, "oficial/x"),
        (["./nowhere", "--output-dir", "x"], 4, "there is no checkpoint ./nowhere"),
        (["clip", "--output-dir", "x", "--base", "nano"], 4, "linear projector"),
        (["official", "--output-dir", "x", "--base", "nanno"], 1, "Did you mean 'nano'"),
        (["official", "--output-dir", "x", "--base", "./nowhere"], 1, "nowhere"),
        (["--vicuna", "./nowhere", "--output-dir", "x"], 3, "there is no folder ./nowhere"),
        (["--vicuna", "clip", "--clip", "clip", "--projector", "projector", "--output-dir", "x"], 3, "tokenizer.model"),
        (["--vicuna", "vicuna", "--clip", "vicuna", "--projector", "projector", "--output-dir", "x"], 3, "preproc"),
        (["--vicuna", "vicuna", "--clip", "clip", "--projector", "vicuna", "--output-dir", "x"], 3, "mm_projector.bin"),
    ],
)
def test_mistakes(capsys: Captured, place: Path, arguments: list[str], code: int, said: str) -> None:
    assert main(["import", *arguments]) == code
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and lines[0].startswith("error: ") and said in err, err
    assert len([line for line in lines if line.startswith("error")]) == 1 and lines[1].startswith("hint: ")
    assert not (place / "x").exists() and not list(place.glob(".*"))


def test_as_a_process(place: Path) -> None:
    """Mistakes cost no import of torch, and a hostile file ends in one line."""
    environment = os.environ | {"PYTHONPATH": str(Path(m2pt_cli.__file__).parents[1])}
    (place / "hostile.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    code = (
        "import sys; from m2pt_cli.cli.app import main;"
        "print([main(['import', 'nowhere', '--output-dir', 'x']), 'torch' in sys.modules])"
    )
    light = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert light.stdout == "[4, False]\n"
    assert main(parts("third")) == 0
    command = [
        sys.executable,
        "-m",
        "m2pt_cli",
        "import",
        "hostile.bin",
        "--base",
        "third",
        "--output-dir",
        "x",
        "--json",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 4 and done.stdout == "" and not (place / "ran").exists()
    error = json.loads(done.stderr)["error"]
    assert error["type"] == "AdapterError" and "code, which is not run" in error["message"]


def test_a_limit_on_the_size_of_files_leaves_nothing_behind(capsys: Captured, place: Path) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        code = main(parts("limited"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    err = capsys.readouterr().err
    assert code == 1 and "ulimit -f" in err and "Traceback" not in err
    assert not [file for file in place.iterdir() if "limited" in file.name]
