"""None"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from fixtures.hub_server import HubServer
from fixtures.tiny_base import write_tiny_base
from fixtures.toy_samples import write_data

import m2pt_cli
from m2pt_cli.cli.app import main
from m2pt_cli.data.vision_flan import ANNOTATION, ARCHIVE, REPO

Captured = pytest.CaptureFixture[str]
QUICK = ["--device", "cpu", "--max-steps", "2", "--batch-size", "2", "--accumulation", "1", "--template", "plain"]


# Child processes start elsewhere and must find this package.
def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(m2pt_cli.__file__).parents[1])}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny base and data."""
    folder = tmp_path_factory.mktemp("train")
    write_tiny_base(folder / "base")
    write_data(folder / "data")
    return folder


@pytest.fixture(autouse=True)
def _here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory whose ``base`` and ``data`` are those of ``place``."""
    monkeypatch.chdir(tmp_path)
    for name in ("base", "data"):
        (tmp_path / name).symlink_to(place / name)
    monkeypatch.setenv("M2PT_BASE", "./base")


def test_prints_the_run_directory(capsys: Captured) -> None:
    assert main(["train", "--data", "data/data.json", *QUICK]) == 0
    out, err = capsys.readouterr()
    assert out == "runs/m2pt-base-data-1\n"
    lines = err.splitlines()
    assert lines[0] == "output directory: runs/m2pt-base-data-1"
    assert any(line.startswith("training m2pt on ") for line in lines)
    assert any(line.startswith("step 2/2, loss ") for line in lines)
    assert any(line.startswith("trained in all") for line in lines)
    assert Path("runs/m2pt-base-data-1/adapter_model.safetensors").is_file()


def test_json_is_one_document(capsys: Captured) -> None:
    assert main(["train", "--data", "data/data.json", *QUICK, "--json", "--quiet", "--validation", "0.2"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    keys = ["output_dir", "method", "base", "steps", "loss", "validation", "trainable", "seconds", "bytes"]
    assert list(document) == keys and err == ""
    assert document["steps"] == 2 and document["validation"] > 0 and out.count("\n") == 1


def test_config_file_with_flags_over_it(capsys: Captured) -> None:
    assert main(["train", "--data", "data/data.json", *QUICK, "--seed", "7", "--output-dir", "first", "--quiet"]) == 0
    assert main(["train", "--config", "first/run.yaml", "--output-dir", "second", "--quiet"]) == 0
    weights = [Path(name, "adapter_model.safetensors").read_bytes() for name in ("first", "second")]
    assert weights[0] == weights[1]
    assert main(["train", "--config", "first/run.yaml", "--seed", "8", "--output-dir", "third", "--quiet"]) == 0
    assert Path("third/adapter_model.safetensors").read_bytes() != weights[0]
    assert capsys.readouterr().out == "first\nsecond\nthird\n"


def test_resume_reads_the_settings_of_the_run(capsys: Captured) -> None:
    assert main(["train", "--data", "data/data.json", *QUICK, "--output-dir", "run", "--quiet"]) == 0
    assert main(["train", "--resume", "--output-dir", "run"]) == 0
    assert "is finished already" in capsys.readouterr().err
    assert main(["train", "--resume", "--output-dir", "run", "--max-steps", "9"]) == 2
    assert "--max-steps is 9 here and 2 in the run" in capsys.readouterr().err


def test_dry_run_writes_nothing(capsys: Captured) -> None:
    arguments = ["train", "--data", "data/data.json", *QUICK, "--visual-prompts", "2", "--textual-prompts", "3"]
    assert main([*arguments, "--dry-run"]) == 0
    out, _ = capsys.readouterr()
    assert "--learning-rate            0.0007" in out
    assert "12 training samples, 0 for validation, 0 skipped" in out
    assert "<image>x9" in out and "[[" in out and "</s>]]" in out
    assert "memory on the device, float32: about" in out
    assert main([*arguments, "--dry-run", "--json", "--quiet"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["steps"] == 2 and document["data"]["samples"] == 12
    assert document["settings"]["learning_rate"] == 7e-4
    supervised = [part for part in document["sample"]["segments"] if part["is_supervised"]]
    assert len(supervised) == 1 and supervised[0]["token_ids"][-1] == 2
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["base", "data"]
    # What it counts is what a run trains.
    assert main([*arguments, "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["trainable"] == document["parameters"]["trainable"]


def refused(capsys: Captured, arguments: list[str], code: int, *said: str) -> None:
    assert main(["train", *arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and all(text in err for text in said), err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--data is missing: name a source"),
        (["--resume"], "--data is missing: runs holds no run to take it from"),
        (["--resume", "--output-dir", "nothere"], "--data is missing: nothere holds no run to take it from"),
        (["--data", "demo", "--method", "loro"], "Did you mean 'lora'?"),
        (["--data", "demo", "--learning-rate", "-1", "--batch-size", "0"], "--batch-size 0 must be at least 1"),
        (["--data", "demo", "--learning-rate", "nan"], "--learning-rate nan"),
        (["--data", "demo", "--warmup", "3"], "must be at most 1"),
        (["--data", "demo", "--epochs", "x"], "--epochs"),
        (["--data", "demo", "--report-to", "tensorbord"], "Did you mean 'tensorboard'?"),
        (["--data", "demo", "--resume", "--overwrite"], "exclude each other"),
        (["--data", "demo", "--resume", "--output-dir", "base"], "no run to continue"),
        (["--data", "demo", "--output-dir", "base"], "is not empty"),
        (["--data", "demo", "--output-dir", "data/data.json"], "is a file"),
        (["--data", "data/data.json", "--validation", "1.5"], "not a share between 0 and 1"),
        (["--data", "data/data.json", "--visual-prompts", "0", "--textual-prompts", "0", "--interaction", "none"],
         "trains nothing"),
        (["--data", "data/data.json", "--template", "base", "--device", "cpu"], "no chat template of its own"),
        (["--no-such-flag"], "--no-such-flag"),
    ],
)  # fmt: skip
def test_bad_settings(capsys: Captured, arguments: list[str], said: str) -> None:
    refused(capsys, arguments, 2, said)
    assert not Path("runs").exists()


def test_unknown_key_in_a_config_file(capsys: Captured) -> None:
    Path("mine.yaml").write_text("data: [demo]\nlerning_rate: 1e-3\nbatch_size: many\n")
    refused(
        capsys, ["--config", "mine.yaml"], 2, "unknown key 'lerning_rate'", "Did you mean 'learning_rate'?", "'many'"
    )
    refused(capsys, ["--config", "none.yaml"], 3, "none.yaml can't be read")


def test_faulty_data(capsys: Captured) -> None:
    refused(capsys, ["--data", "missing.json"], 3, "no such file")
    Path("cut.json").write_text('[{"id": "a", "conv')
    refused(capsys, ["--data", "cut.json"], 3, "cut.json")
    rows = [
        {"id": n, "image": "none.png", "conversations": [{"from": "human", "value": "<image>\na"}]} for n in range(3)
    ]
    Path("bad.json").write_text(json.dumps(rows))
    refused(capsys, ["--data", "bad.json"], 3, "3 faulty samples")
    assert not Path("runs").exists()


def test_base_and_device_that_are_not_there(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(capsys, ["--data", "data/data.json", "--base", "llava-9b"], 1, "llava-9b")
    if not torch.cuda.is_available():
        refused(capsys, ["--data", "data/data.json", "--device", "cuda"], 1, "there is no CUDA device")
        for name in ("M2PT_BASE", "M2PT_DEVICE"):
            monkeypatch.delenv(name)
        # Said before anything is downloaded.
        refused(capsys, ["--data", "vision-flan"], 1, "there is no GPU", "--base nano")


def test_json_errors(capsys: Captured) -> None:
    assert main(["train", "--data", "missing.json", "--json", "--quiet"]) == 3
    out, err = capsys.readouterr()
    assert out == "" and json.loads(err)["error"]["type"] == "InputError"


def test_data_is_checked_before_torch_is_imported() -> None:
    script = (
        "import sys; from m2pt_cli.cli.app import main; code = main(sys.argv[1:]);"
        "print(code, [name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    arguments = ["train", "--data", "missing.json", "--base", "nano"]
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    assert done.stdout == "3 []\n"


def test_terminated_process_saves_a_checkpoint() -> None:
    arguments = ["--data", "data/data.json", "--output-dir", "run", *QUICK, "--max-steps", "100000"]
    command = [sys.executable, "-m", "m2pt_cli", "train", *arguments]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stderr is not None
        seen = next((line for line in process.stderr if line.startswith("step ")), None)
        assert seen is not None
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert out == ""
    assert "error: stopped at step" in err and "hint: m2pt train --resume --output-dir run" in err
    assert "Traceback" not in err
    assert len(list(Path("run").glob("checkpoint-*"))) == 1


@pytest.mark.slow
def test_two_processes_train_as_one(capsys: Captured) -> None:
    arguments = ["--data", "data/data.json", "--device", "cpu", "--max-steps", "4", "--template", "plain",
                 "--accumulation", "1", "--learning-rate", "0.01", "--validation", "data/data.json"]  # fmt: skip
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "m2pt_cli", "train"]
    command = [*launch, *arguments, "--batch-size", "2", "--output-dir", "two"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "two\n"
    assert done.stderr.count("training m2pt on") == 1
    assert main(["train", *arguments, "--batch-size", "4", "--output-dir", "one", "--quiet"]) == 0
    rows = [
        [json.loads(line) for line in Path(name, "metrics.jsonl").read_text().splitlines()] for name in ("one", "two")
    ]
    for one, two in zip(*rows, strict=True):
        assert one["step"] == two["step"]
        for name in one.keys() & {"loss", "validation_loss", "grad_norm"}:
            assert two[name] == pytest.approx(one[name], rel=1e-3)
    capsys.readouterr()
    assert main(["train", "--resume", "--output-dir", "two"]) == 2
    assert "it runs in 1 processes here and in 2 there" in capsys.readouterr().err


@pytest.mark.slow
def test_the_users_command_letter_for_letter(tmp_path: Path) -> None:
    """With a stand-in Hub and the embedded base, ``m2pt train --data vision-flan`` needs nothing else."""
    repo = tmp_path / "hub/datasets" / REPO
    repo.mkdir(parents=True)
    rows = json.loads(Path("data/data.json").read_text())[:6]
    with zipfile.ZipFile(repo / ARCHIVE, "w") as archive:
        for row in rows:
            archive.write(f"data/{row['image']}", f"images_191task_1k/{row['image']}")
    (repo / ANNOTATION).write_text(json.dumps(rows))
    with HubServer(tmp_path / "hub") as hub:
        variables = hub.environment(tmp_path / "home", M2PT_BASE="nano", PYTHONPATH=environment()["PYTHONPATH"])
        command = [sys.executable, "-m", "m2pt_cli", "train", "--data", "vision-flan"]
        done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "runs/m2pt-nano-vision-flan-1\n"
    assert "downloading" in done.stderr and "training m2pt on nano" in done.stderr
    assert Path("runs/m2pt-nano-vision-flan-1/adapter_model.safetensors").is_file()
