"""None"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from m2pt_cli.errors import InputError, SettingsError
from m2pt_cli.settings import TrainSettings
from m2pt_cli.training.run_dir import (
    claim,
    clear,
    default_name,
    kept_settings,
    read_run_file,
    require_same_run,
    settings_file,
    write_run_file,
)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def settings(**values: object) -> TrainSettings:
    return TrainSettings(**({"data": ("demo",)} | values))  # type: ignore[arg-type]


def test_default_names() -> None:
    assert default_name(settings(), "nano") == "m2pt-nano-demo"
    assert default_name(settings(method="lora"), "llava-hf/llava-1.5-7b-hf") == "lora-llava-1.5-7b-hf-demo"
    mixed = settings(data=("demo", "../some where/my data.json", "Vision-Flan/vision-flan_191"))
    assert default_name(mixed, "/bases/mine/") == "m2pt-mine-demo+my-data+vision-flan_191"


def test_default_folders_are_counted() -> None:
    assert str(claim(settings(), "nano")) == "runs/m2pt-nano-demo-1"
    assert str(claim(settings(), "nano")) == "runs/m2pt-nano-demo-2"
    Path("runs/m2pt-nano-demo-7").mkdir()
    assert str(claim(settings(), "nano")) == "runs/m2pt-nano-demo-8"
    assert str(claim(settings(method="lora"), "nano")) == "runs/lora-nano-demo-1"


def test_resume_without_a_name_takes_the_newest() -> None:
    folder = claim(settings(resume=True), "nano")  # there is none: one is begun
    assert str(folder) == "runs/m2pt-nano-demo-1"
    assert claim(settings(resume=True), "nano") == folder  # it was killed before its first line
    write_run_file(folder, {"settings": {}})
    assert claim(settings(resume=True), "nano") == folder
    newer = claim(settings(), "nano")
    (newer / "notes.txt").write_text("not a run")
    assert str(claim(settings(resume=True), "nano")) == "runs/m2pt-nano-demo-3"


def test_a_folder_that_is_not_empty_is_refused() -> None:
    folder = Path("mine")
    folder.mkdir()
    assert claim(settings(output_dir=folder), "nano") == folder
    (folder / "notes.txt").write_text("keep me")
    with pytest.raises(SettingsError, match="not empty") as raised:
        claim(settings(output_dir=folder), "nano")
    assert "--resume" in (raised.value.hint or "") and "--overwrite" in (raised.value.hint or "")
    assert claim(settings(output_dir=folder, overwrite=True), "nano") == folder
    # `--resume` begins a run where there is none, but replaces nothing that is there.
    assert claim(settings(output_dir=folder, resume=True), "nano") == folder
    (folder / "README.md").write_text("of somebody's repository")
    with pytest.raises(SettingsError, match=r"no run to continue, but README\.md, which a new run would replace"):
        claim(settings(output_dir=folder, resume=True), "nano")
    (folder / "README.md").unlink()
    with pytest.raises(SettingsError, match="is a file"):
        claim(settings(output_dir=folder / "notes.txt"), "nano")


def test_overwrite_removes_only_what_a_run_writes() -> None:
    folder = Path("mine")
    (folder / "checkpoint-5").mkdir(parents=True)
    (folder / "photos").mkdir()
    for name in ("run.yaml", "adapter_model.safetensors", "README.md", "notes.txt", "photos/a.jpg"):
        (folder / name).write_text("x")
    clear(folder)
    assert sorted(path.name for path in folder.rglob("*")) == ["a.jpg", "notes.txt", "photos"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_unwritable_folder() -> None:
    Path("locked").mkdir(mode=0o500)
    with pytest.raises(SettingsError, match="can't be written"):
        claim(settings(output_dir=Path("locked/run")), "nano")


def test_a_file_in_the_way_of_the_folder() -> None:
    Path("plain").write_text("x")
    with pytest.raises(SettingsError, match="can't be written: Not a directory"):
        claim(settings(output_dir=Path("plain/run")), "nano")


def test_run_file_repeats_the_run(tmp_path: Path) -> None:
    Path("data.json").write_text("[]")
    mine = settings(data=("data.json",), learning_rate=7e-4, images=(Path("photos"),), output_dir=tmp_path, seed=5)
    write_run_file(tmp_path, {"settings": kept_settings(mine), "result": None})
    again = TrainSettings.from_sources(tmp_path / "run.yaml", {})
    where = {"data": (str(tmp_path / "data.json"),), "images": (tmp_path / "photos",), "output_dir": None}
    assert again == dataclasses.replace(mine, **where)
    assert settings_file(None, output_dir=tmp_path, resume=True) == tmp_path / "run.yaml"
    assert settings_file(None, output_dir=tmp_path, resume=False) is None
    assert settings_file(Path("x.yaml"), output_dir=tmp_path, resume=True) == Path("x.yaml")


def test_another_run_is_not_continued(tmp_path: Path) -> None:
    def record(data: str = "aaa", base: str | None = "bbb", **values: object) -> dict[str, object]:
        return {
            "settings": kept_settings(settings(**values)),
            "data": {"fingerprint": data},
            "base": {"fingerprint": base},
        }

    write_run_file(tmp_path, record(learning_rate=0.1, epochs=3.0))
    require_same_run(tmp_path, record(learning_rate=0.1, epochs=3.0, threads=4, keep=9, workers=2, device="cpu"))
    require_same_run(tmp_path, record(learning_rate=0.1, epochs=3.0, base=None))
    with pytest.raises(SettingsError, match=r"--epochs is None here and 3\.0 in the run; --learning-rate is 0\.2"):
        require_same_run(tmp_path, record(learning_rate=0.2))
    with pytest.raises(SettingsError, match="the data has changed"):
        require_same_run(tmp_path, record(learning_rate=0.1, epochs=3.0, data="ccc"))
    with pytest.raises(SettingsError, match="the base has changed"):
        require_same_run(tmp_path, record(learning_rate=0.1, epochs=3.0, base="ccc"))


def test_damaged_run_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("settings: 5")
    with pytest.raises(InputError, match="holds no settings"):
        read_run_file(tmp_path)
