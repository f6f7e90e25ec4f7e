"""None"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch._utils import ExceptionWrapper

from m2pt_cli.errors import AdapterError, DeviceError, InputError, Interrupted, SettingsError
from m2pt_cli.models import catalog
from m2pt_cli.models.adapters import attach_adapter, read_adapter
from m2pt_cli.models.load import load_base
from m2pt_cli.records import TrainResult
from m2pt_cli.settings import TrainSettings, read_yaml
from m2pt_cli.training import checkpoints, plan, trainer
from m2pt_cli.training import report as finish
from m2pt_cli.training.events import Event, Finished, Notice, Started, Step
from m2pt_cli.training.run import broken_sample, run_training
from m2pt_cli.training.run_dir import settings_file

Run = Callable[..., TrainResult]


@pytest.fixture
def run(tmp_path: Path, base_folder: Path, data_file: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run_training` on the tiny base and 12 samples: six steps of two."""
    monkeypatch.chdir(tmp_path)

    def call(*, events: Callable[[Event], None] = lambda event: None, **values: Any) -> TrainResult:
        if values.get("method") in ("lora", "full", "interaction"):
            values |= {"visual_prompts": None, "textual_prompts": None}
        defaults: dict[str, Any] = {
            "data": (str(data_file),), "base": str(base_folder), "device": "cpu", "template": "plain",
            "batch_size": 2, "accumulation": 1, "epochs": 1, "visual_prompts": 2, "textual_prompts": 3,
            "gradient_checkpointing": False, "output_dir": tmp_path / "run",
        }  # fmt: skip
        return run_training(TrainSettings(**(defaults | values)), events=events)

    return call


def stop_after(step: int, number: signal.Signals = signal.SIGINT) -> Callable[[Event], None]:
    """Send a signal while ``step`` is computed: its event comes when it is done."""

    def events(event: Event) -> None:
        if isinstance(event, Step) and event.step == step - 1:
            os.kill(os.getpid(), number)

    return events


def test_writes_a_run_directory(run: Run, tmp_path: Path, base_folder: Path, data_file: Path) -> None:
    events: list[Event] = []
    result = run(events=events.append)
    folder = tmp_path / "run"
    names = ["README.md", "adapter_config.json", "adapter_model.safetensors", "loss.png", "metrics.jsonl", "run.yaml"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
    assert (result.output_dir, result.method, result.steps) == (str(folder), "m2pt", 6)
    assert result.base == str(base_folder) and result.validation is None and result.loss is not None
    assert result.bytes == (folder / "adapter_model.safetensors").stat().st_size

    stored = load_file(folder / "adapter_model.safetensors")
    assert sum(t.numel() for t in stored.values()) == result.trainable
    assert {t.dtype for t in stored.values()} == {torch.float32}
    config = json.loads((folder / "adapter_config.json").read_text())
    loaded = load_base(str(base_folder), device="cpu")
    assert config["base_model_name_or_path"] == str(base_folder)
    assert (config["chat_template"], config["image_fit"], config["visual_tokens"]) == ("plain", "crop", "patches")
    assert config["base_fingerprint"] == loaded.fingerprint
    attach_adapter(loaded, read_adapter(str(folder)))  # strict

    started = next(event for event in events if isinstance(event, Started))
    assert (started.steps, started.first_step, started.samples, started.trainable) == (6, 0, 12, result.trainable)
    finished = next(event for event in events if isinstance(event, Finished))
    assert list(finished.parts) == ["visual_prompts", "textual_prompts", "interaction"]
    assert sum(finished.parts.values()) == result.trainable
    assert [event.step for event in events if isinstance(event, Step)] == [1, 2, 3, 4, 5, 6]

    record = read_yaml(folder / "run.yaml")
    assert record["settings"]["data"] == ["./data/data.json"] and record["settings"]["learning_rate"] == 7e-4
    assert record["data"]["samples"] == 12 and record["result"]["steps"] == 6
    assert {"m2pt", "torch", "transformers", "peft"} <= record["versions"].keys()


def test_run_file_repeats_the_run_bit_for_bit(run: Run, tmp_path: Path) -> None:
    run(seed=3)
    settings = TrainSettings.from_sources(tmp_path / "run/run.yaml", {"output_dir": tmp_path / "again"})
    run_training(settings)
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("run", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_and_resumed_ends_as_if_never_stopped(run: Run, tmp_path: Path, number: signal.Signals) -> None:
    run(output_dir=tmp_path / "whole", epochs=2)
    with pytest.raises(Interrupted, match="stopped at step 4 of 12") as raised:
        run(epochs=2, events=stop_after(4, number))
    assert raised.value.exit_code == 128 + number
    assert raised.value.hint == f"m2pt train --resume --output-dir {tmp_path / 'run'}"
    assert not (tmp_path / "run/adapter_model.safetensors").exists()
    torch.manual_seed(99)
    resumed: list[Event] = []
    run(epochs=2, resume=True, events=resumed.append)
    assert [event.step for event in resumed if isinstance(event, Step)] == list(range(5, 13))
    whole, parts = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "run"))
    assert whole == parts
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "run")
    ]
    assert losses[0] == losses[1]
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_resume_with_other_settings_is_refused(run: Run, tmp_path: Path, data_file: Path) -> None:
    with pytest.raises(Interrupted):
        run(events=stop_after(2))
    with pytest.raises(SettingsError, match=r"--learning-rate is 0\.5 here and 0\.0007 in the run"):
        run(resume=True, learning_rate=0.5)
    data_file.write_text(data_file.read_text().replace('"value": "yes"', '"value": "no"'))
    with pytest.raises(SettingsError, match="the data has changed"):
        run(resume=True)
    assert (tmp_path / "run/checkpoint-2").is_dir()


def test_resume_passes_over_a_damaged_checkpoint(run: Run, tmp_path: Path) -> None:
    run(output_dir=tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(save_steps=2, events=stop_after(3))
    (tmp_path / "run/checkpoint-3/optimizer.pt").write_bytes(b"cut")
    events: list[Event] = []
    run(save_steps=2, resume=True, events=events.append)
    warnings = [event.text for event in events if isinstance(event, Notice) and event.is_warning]
    assert len(warnings) == 1 and "checkpoint-3 is damaged (optimizer.pt has 3 bytes" in warnings[0]
    assert [event.step for event in events if isinstance(event, Step)] == [3, 4, 5, 6]
    whole, parts = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "run"))
    assert whole == parts


def test_a_finished_run_is_not_run_again(run: Run) -> None:
    result = run()
    events: list[Event] = []
    assert run(resume=True, events=events.append) == result
    assert not [event for event in events if isinstance(event, Step)]


def test_seconds_tokens_and_losses_are_of_the_whole_run(run: Run, tmp_path: Path) -> None:
    whole: list[Event] = []
    run(output_dir=tmp_path / "whole", epochs=2, events=whole.append)
    with pytest.raises(Interrupted):
        run(epochs=2, events=stop_after(4))
    file = tmp_path / "run/metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for index, row in enumerate(rows):  # as if every step had taken 100 seconds
        row["seconds"] = 100.0 * (index + 1)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    events: list[Event] = []
    result = run(epochs=2, resume=True, events=events.append)
    started = next(event for event in events if isinstance(event, Started))
    assert (started.first_step, started.passes) == (4, 2.0)
    assert list(started.losses) == [row["loss"] for row in rows[:4]]
    steps = [event for event in events if isinstance(event, Step)]
    assert [step.seconds > 400 for step in steps] == [True] * 8
    finished = next(event for event in events if isinstance(event, Finished))
    assert finished.seconds > 400 and result.seconds > 400
    same = next(event for event in whole if isinstance(event, Finished))
    assert finished.tokens == same.tokens == steps[-1].tokens
    seconds = next(line for line in (tmp_path / "run/README.md").read_text().splitlines() if "| seconds |" in line)
    assert int(seconds.split("|")[2]) >= 400


WEIGHTS = "adapter_model.safetensors"


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("name", "hurt", "said"),
    [
        (WEIGHTS, Path.unlink, "is missing"),
        (WEIGHTS, cut, "instead of"),
        (WEIGHTS, flip, "was changed"),
        ("adapter_config.json", Path.unlink, "is missing"),
        ("adapter_config.json", cut, "is damaged"),
    ],
)
def test_a_finished_run_that_lost_its_adapter_is_finished_again(
    run: Run, tmp_path: Path, name: str, hurt: Callable[[Path], None], said: str
) -> None:
    result = run(keep=5)
    files = {file: (tmp_path / "run" / file).read_bytes() for file in (WEIGHTS, "adapter_config.json")}
    hurt(tmp_path / "run" / name)
    if not (tmp_path / "run" / name).exists():
        with pytest.raises(AdapterError) as caught:
            read_adapter(str(tmp_path / "run"))
        assert f"m2pt train --resume --output-dir {tmp_path / 'run'}" in (caught.value.hint or "")
    events: list[Event] = []
    again = run(keep=5, resume=True, events=events.append)
    warnings = [event.text for event in events if isinstance(event, Notice) and event.is_warning]
    assert len(warnings) == 1 and name in warnings[0] and said in warnings[0] and "last checkpoint" in warnings[0]
    assert not [event for event in events if isinstance(event, Step)]  # nothing is trained again
    assert {file: (tmp_path / "run" / file).read_bytes() for file in files} == files
    assert (again.steps, again.loss) == (result.steps, result.loss)
    assert run(keep=5, resume=True).bytes == result.bytes


def test_a_damaged_last_checkpoint_leads_to_the_one_before(run: Run, tmp_path: Path) -> None:
    run(keep=5, save_steps=2)
    before = (tmp_path / "run" / WEIGHTS).read_bytes()
    (tmp_path / "run" / WEIGHTS).unlink()
    cut(tmp_path / "run/checkpoint-6/optimizer.pt")
    events: list[Event] = []
    run(keep=5, save_steps=2, resume=True, events=events.append)
    assert [event.step for event in events if isinstance(event, Step)] == [5, 6]
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == before


def test_without_a_checkpoint_it_is_trained_again_and_said(run: Run, tmp_path: Path) -> None:
    run()
    before = (tmp_path / "run" / WEIGHTS).read_bytes()
    (tmp_path / "run" / WEIGHTS).unlink()
    events: list[Event] = []
    run(resume=True, events=events.append)
    assert any("no checkpoint was kept" in event.text for event in events if isinstance(event, Notice))
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == before


def test_a_finished_run_that_lost_its_card_and_curve(run: Run, tmp_path: Path) -> None:
    run()
    folder = tmp_path / "run"
    card = (folder / "README.md").read_text()
    (folder / "README.md").unlink()
    (folder / "loss.png").write_bytes(b"")
    events: list[Event] = []
    run(resume=True, events=events.append)
    assert not [event for event in events if isinstance(event, Started | Step)]
    assert (folder / "README.md").read_text() == card
    assert (folder / "loss.png").stat().st_size > 1000
    (folder / "metrics.jsonl").unlink()
    events.clear()
    run(resume=True, events=events.append)
    warnings = [event.text for event in events if isinstance(event, Notice) and event.is_warning]
    assert warnings == ["metrics.jsonl is missing and can't be made again without training; the weights are complete"]


@pytest.mark.parametrize("hurt", [Path.unlink, cut])
def test_a_lost_record_comes_back_from_the_last_checkpoint(
    run: Run, tmp_path: Path, hurt: Callable[[Path], None]
) -> None:
    result = run(keep=1)
    folder = tmp_path / "run"
    before = (folder / WEIGHTS).read_bytes()
    metrics = (folder / "metrics.jsonl").read_text()
    hurt(folder / "run.yaml")
    (folder / "metrics.jsonl").unlink()
    file = settings_file(None, output_dir=folder, resume=True)
    assert file == folder / "checkpoint-6/run.yaml"
    settings = TrainSettings.from_sources(file, {"output_dir": folder, "resume": True})
    events: list[Event] = []
    again = run_training(settings, events=events.append)
    assert not [event for event in events if isinstance(event, Step)]
    assert (folder / WEIGHTS).read_bytes() == before and (folder / "metrics.jsonl").read_text() == metrics
    assert (again.loss, read_yaml(folder / "run.yaml")["result"]["steps"]) == (result.loss, 6)
    # Without a checkpoint the adapter is as good as ever, but its settings are not known.
    shutil.rmtree(folder / "checkpoint-6")
    (folder / "run.yaml").unlink()
    with pytest.raises(SettingsError, match="no run to continue, but README"):
        run(resume=True)
    assert (folder / WEIGHTS).read_bytes() == before


def test_resume_passes_over_a_checkpoint_whose_best_step_is_lost(run: Run, tmp_path: Path, data_file: Path) -> None:
    other = data_file.with_name("other.json")
    other.write_text(data_file.read_text().replace('"yes"', '"?"').replace('"no"', '"yes"').replace('"?"', '"no"'))
    options: dict[str, Any] = {"validation": str(other), "save_steps": 2, "keep": 9, "learning_rate": 0.1, "epochs": 3}
    run(**options)
    record = read_yaml(tmp_path / "run/run.yaml")
    best = record["result"]["best_step"]
    assert 2 < best < record["result"]["steps"]
    before = (tmp_path / "run" / WEIGHTS).read_bytes()
    (tmp_path / "run" / WEIGHTS).unlink()
    shutil.rmtree(tmp_path / f"run/checkpoint-{best}")
    events: list[Event] = []
    run(**options, resume=True, events=events.append)
    assert next(event.step for event in events if isinstance(event, Step)) == best - 1
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == before


def test_resume_begins_a_run_where_there_is_none(run: Run, tmp_path: Path) -> None:
    events: list[Event] = []
    (tmp_path / "run").mkdir()
    (tmp_path / "run/job-17.out").write_text("the scheduler's log")
    assert run(resume=True, events=events.append).steps == 6
    assert "there is no run to resume: starting one" in [e.text for e in events if isinstance(e, Notice)]
    assert (tmp_path / "run/job-17.out").read_text() == "the scheduler's log"


def test_a_run_that_never_finished_a_step_counts_as_empty(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any) -> None:
        raise OSError("the machine is switched off")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="switched off"):
        patch.setattr(trainer, "supervised_loss", crash)
        run()
    assert (tmp_path / "run/run.yaml").is_file()
    with pytest.raises(
        SettingsError, match=r"not empty: it holds a run with other settings \(--seed is 5 here"
    ) as said:
        run(seed=5)
    assert "--overwrite" in (said.value.hint or "")
    assert run().steps == 6
    with pytest.raises(SettingsError, match=r"is not empty$"):  # once a step is done, it is a run
        run()


def test_two_runs_do_not_write_into_one_folder(run: Run, tmp_path: Path) -> None:
    refused: list[str] = []

    def events(event: Event) -> None:
        if isinstance(event, Started) and not refused:
            with pytest.raises(SettingsError) as caught:
                run()
            refused.append(caught.value.message)

    run(events=events)
    assert refused == [f"another m2pt train is writing to {tmp_path / 'run'}"]


def test_resumed_and_repeated_from_another_working_directory(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted):
        run(output_dir=Path("runs/a"), images=(Path("data"),), events=stop_after(3))
    text = (tmp_path / "runs/a/run.yaml").read_text()
    assert "working_directory: ../..\n" in text and "- ./data/data.json\n" in text
    assert str(tmp_path / "data") not in text and str(tmp_path / "runs") not in text
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    folder = Path("../runs/a")
    file = settings_file(None, output_dir=folder, resume=True)
    run_training(TrainSettings.from_sources(file, {"output_dir": folder, "resume": True}))
    run_training(TrainSettings.from_sources(folder / "run.yaml", {"output_dir": Path("again")}))
    first, second = ((place / WEIGHTS).read_bytes() for place in (folder, Path("again")))
    assert first == second
    monkeypatch.chdir(tmp_path)  # a project that is moved takes its runs along
    (tmp_path / "project").mkdir()
    for name in ("data", "runs"):
        (tmp_path / name).rename(tmp_path / "project" / name)
    settings = TrainSettings.from_sources(tmp_path / "project/runs/a/run.yaml", {})
    assert settings.data == (str(tmp_path / "project/data/data.json"),)


def test_few_samples_for_the_default_number_of_steps_are_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Event] = []
    options: dict[str, Any] = {"base": "nano", "template": None, "epochs": None, "batch_size": None}
    monkeypatch.setattr(plan, "_MANY_PASSES", 2)
    defaults = dataclasses.replace(catalog.NANO_DEFAULTS, max_steps=3, batch_size=12)
    entry = dataclasses.replace(catalog.entry_of("nano"), defaults=defaults)
    monkeypatch.setattr(plan, "entry_of", lambda base: entry)
    run(**options, events=events.append)
    warnings = [event.text for event in events if isinstance(event, Notice) and event.is_warning]
    assert len(warnings) == 1 and warnings[0].startswith(
        "12 samples are few for the 3 steps that nano takes by default"
    )
    assert "each is trained on 3 times" in warnings[0] and "--epochs" in warnings[0]
    events.clear()
    run(**options | {"max_steps": 3}, output_dir=Path("said"), events=events.append)
    assert not [event for event in events if isinstance(event, Notice) and event.is_warning]


def test_overwrite_starts_anew(run: Run, tmp_path: Path) -> None:
    run(keep=1)
    (tmp_path / "run/notes.txt").write_text("mine")
    assert (tmp_path / "run/checkpoint-6").is_dir()
    with pytest.raises(SettingsError, match="not empty"):
        run()
    run(overwrite=True, epochs=0.5)
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 3
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    assert (tmp_path / "run/notes.txt").read_text() == "mine"


def test_the_best_step_by_validation_loss_is_what_is_saved(run: Run, tmp_path: Path, data_file: Path) -> None:
    """The validation answers contradict the training answers: their loss falls, then rises."""
    other = data_file.with_name("other.json")
    other.write_text(data_file.read_text().replace('"yes"', '"?"').replace('"no"', '"yes"').replace('"?"', '"no"'))
    result = run(validation=str(other), save_steps=2, keep=9, learning_rate=0.1, epochs=3)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row}
    best = min(losses, key=losses.__getitem__)
    assert best < max(losses) and result.validation == losses[best]
    saved = load_file(tmp_path / "run/adapter_model.safetensors")
    kept = load_file(tmp_path / f"run/checkpoint-{best}/adapter_model.safetensors")
    last = load_file(tmp_path / f"run/checkpoint-{max(losses)}/adapter_model.safetensors")
    assert all(torch.equal(saved[name], kept[name]) for name in saved)
    assert any(not torch.equal(saved[name], last[name]) for name in saved)


@pytest.mark.parametrize("method", ["visual", "textual", "interaction", "lora"])
def test_every_method_is_saved_and_loads(run: Run, tmp_path: Path, base_folder: Path, method: str) -> None:
    result = run(method=method, max_steps=2, epochs=None, visual_prompts=None, textual_prompts=None)
    info = read_adapter(result.output_dir)
    assert info.method == method and info.chat_template == "plain" and info.image_fit == "crop"
    assert info.bytes == result.bytes
    attach_adapter(load_base(str(base_folder), device="cpu"), info)
    assert result.method in (tmp_path / "run/README.md").read_text()


def test_full_tuning_writes_a_base(run: Run, tmp_path: Path, base_folder: Path) -> None:
    with pytest.raises(Interrupted):
        run(method="full", max_steps=4, epochs=None, events=stop_after(2))
    result = run(method="full", max_steps=4, epochs=None, resume=True)
    run(method="full", max_steps=4, epochs=None, output_dir=tmp_path / "whole")
    tuned, before = load_base(result.output_dir, device="cpu"), load_base(str(base_folder), device="cpu")
    whole = load_base(str(tmp_path / "whole"), device="cpu")
    changed = {
        name.split(".")[1] if name.startswith("model.") else name.split(".")[0]
        for (name, p), q in zip(tuned.model.named_parameters(), before.model.parameters(), strict=True)
        if not torch.equal(p, q)
    }
    assert changed == {"language_model", "multi_modal_projector", "lm_head"}
    pairs = zip(tuned.model.parameters(), whole.model.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)
    assert not (tmp_path / "run/adapter_config.json").exists()


def test_checkpointed_activations_give_the_same_adapter(run: Run, tmp_path: Path) -> None:
    run(output_dir=tmp_path / "kept")
    run(output_dir=tmp_path / "recomputed", gradient_checkpointing=True)
    kept, recomputed = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("kept", "recomputed"))
    for name, value in kept.items():
        torch.testing.assert_close(value, recomputed[name], rtol=1e-4, atol=1e-6)


def test_faulty_data_leaves_no_folder_behind(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        run(data=("missing.json",))
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError):
        run(data=("missing.json",), output_dir=None)
    with pytest.raises(InputError):
        run(data=("missing.json",), output_dir=tmp_path / "a/b/c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def break_images(data_file: Path) -> Callable[[Event], None]:
    """Break two images once the checks are over."""

    def events(event: Event) -> None:
        if isinstance(event, Started):
            for number in (3, 7):
                (data_file.parent / f"{number}.png").write_bytes(b"no image")

    return events


def test_image_that_breaks_later_is_named(run: Run, data_file: Path) -> None:
    with pytest.raises(InputError, match=r"^image \S+[37]\.png can't be read: not an image, or damaged$") as raised:
        run(events=break_images(data_file))
    assert "--resume --skip-bad" in (raised.value.hint or "")


def test_fault_met_by_a_worker_process_is_one_line() -> None:
    fault = "image a.png can't be read: not an image, or damaged"
    try:
        raise InputError(fault)
    except InputError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(InputError) as raised:
        wrapped.reraise()
    assert "Traceback" in raised.value.message
    assert broken_sample(raised.value).message == fault
    assert broken_sample(InputError(fault)).message == fault


def test_image_that_breaks_later_is_skipped_and_counted(run: Run, data_file: Path, tmp_path: Path) -> None:
    events: list[Event] = []

    def both(event: Event) -> None:
        events.append(event)
        break_images(data_file)(event)

    result = run(skip_bad=True, batch_size=6, events=both)
    assert result.steps == 2
    assert [e.text for e in events if isinstance(e, Notice) and e.is_warning] == [
        "2 samples with a broken image were skipped"
    ]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of ..."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_memory_says_what_to_lower(error: Exception, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any) -> None:
        raise error

    monkeypatch.setattr(trainer, "supervised_loss", exhausted)
    with pytest.raises(DeviceError, match=r"^out of memory while training: CUDA [^\n]*$") as raised:
        run(batch_size=4, accumulation=2)
    assert "--batch-size 2 --accumulation 4" in (raised.value.hint or "")
    assert "--gradient-checkpointing" in (raised.value.hint or "")


def test_full_disk_keeps_the_checkpoint_before(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, calls = checkpoints.save_weights, []

    def fill(model: torch.nn.Module, folder: Path) -> None:
        calls.append(folder)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(model, folder)

    with monkeypatch.context() as patch, pytest.raises(DeviceError, match="disk is full"):
        patch.setattr(trainer, "save_weights", fill)
        run(save_steps=2, keep=5)
    assert [path.name for path in sorted((tmp_path / "run").glob("*checkpoint*"))] == ["checkpoint-2"]
    assert run(save_steps=2, resume=True).steps == 6


def test_failure_at_the_very_end_loses_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(output_dir=tmp_path / "whole", validation="0.3")

    def fill(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(DeviceError, match="disk is full"):
        patch.setattr(finish, "plot_loss", fill)
        run(validation="0.3")
    events: list[Event] = []
    resumed = run(validation="0.3", resume=True, events=events.append)
    assert not [event for event in events if isinstance(event, Step)]
    assert (resumed.steps, resumed.loss, resumed.validation) == (whole.steps, whole.loss, whole.validation)
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "run")]
    assert files[0] == files[1]


def test_accumulated_batches_train_the_same_adapter(run: Run, tmp_path: Path) -> None:
    run(output_dir=tmp_path / "one", batch_size=4, accumulation=1)
    run(output_dir=tmp_path / "two", batch_size=2, accumulation=2)
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_reports_to_tensorboard(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run(report_to=("tensorboard",), max_steps=2, epochs=None)
    assert list((tmp_path / "run/trackers").rglob("events.out.tfevents.*"))
