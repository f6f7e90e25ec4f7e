from __future__ import annotations

import errno
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from fixtures.models import tiny_llava
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError

from m2pt_cli.errors import DeviceError, InputError
from m2pt_cli.training.checkpoints import (
    checkpoints,
    damage,
    full_disk_named,
    latest_checkpoint,
    load_weights,
    remove_old,
    save_weights,
    staged,
    write_text,
)


def checkpoint(run_dir: Path, step: int) -> Path:
    folder = run_dir / f"checkpoint-{step}"
    with staged(folder) as partial:
        (partial / "a.bin").write_bytes(bytes(range(100)))
        (partial / "b.txt").write_text("b")
    return folder


def test_complete_or_absent(tmp_path: Path) -> None:
    with pytest.raises(KeyError), staged(tmp_path / "checkpoint-1") as partial:
        (partial / "half").write_text("x")
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    folder = checkpoint(tmp_path, 2)
    assert sorted(path.name for path in folder.iterdir()) == ["a.bin", "b.txt", "manifest.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    assert damage(folder) is None


def test_full_disk_is_one_line_and_leaves_what_was_there(tmp_path: Path) -> None:
    checkpoint(tmp_path, 1)
    with pytest.raises(DeviceError, match="disk is full") as raised, staged(tmp_path / "checkpoint-2"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "--resume" in (raised.value.hint or "")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_full_disk_without_an_errno_is_known_by_the_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors and torch's zip writer raise errors of their own."""
    with pytest.raises(SafetensorError), full_disk_named(tmp_path):
        raise SafetensorError("bad header")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 4096))
    with pytest.raises(DeviceError, match="disk is full"), full_disk_named(tmp_path / "not" / "yet"):
        raise SafetensorError("Error while serializing: I/O error")


def test_write_text_replaces_in_one_step(tmp_path: Path) -> None:
    write_text(tmp_path / "run.yaml", "a")
    write_text(tmp_path / "run.yaml", "b")
    assert (tmp_path / "run.yaml").read_text() == "b"
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


@pytest.mark.parametrize(
    ("hurt", "said"),
    [
        (lambda folder: (folder / "a.bin").write_bytes(bytes(50)), "a.bin has 50 bytes instead of 100"),
        (lambda folder: (folder / "a.bin").write_bytes(bytes(100)), "a.bin was changed"),
        (lambda folder: (folder / "b.txt").unlink(), "b.txt is missing"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json can't be read"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json can't be read"),
    ],
)
def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, hurt, said: str) -> None:  # type: ignore[no-untyped-def]
    older, newer = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    hurt(newer)
    warnings: list[str] = []
    assert latest_checkpoint(tmp_path, warnings.append) == older
    assert len(warnings) == 1 and said in warnings[0] and "checkpoint-10" in warnings[0]


def test_nothing_but_damaged_checkpoints_is_an_error(tmp_path: Path) -> None:
    (checkpoint(tmp_path, 3) / "a.bin").unlink()
    with pytest.raises(InputError, match="every checkpoint"):
        latest_checkpoint(tmp_path, lambda text: None)


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint-5.partial").mkdir()
    (tmp_path / "checkpoint-x").mkdir()
    assert latest_checkpoint(tmp_path, pytest.fail) is None


def test_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (5, 10, 15, 100):
        checkpoint(tmp_path, step)
    remove_old(tmp_path, keep=2, best_step=5)
    assert [step for step, _ in checkpoints(tmp_path)] == [5, 15, 100]
    remove_old(tmp_path, keep=7, best_step=None)
    assert len(checkpoints(tmp_path)) == 3


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    small = get_peft_model(tiny_llava(), LoraConfig(r=2, target_modules=["q_proj"]))
    large = get_peft_model(tiny_llava(), LoraConfig(r=4, target_modules=["q_proj"]))
    other = get_peft_model(tiny_llava(), LoraConfig(r=2, target_modules=["v_proj"]))
    save_weights(small, tmp_path)
    for model in (large, other):
        with pytest.raises(InputError, match="does not fit this run"):
            load_weights(model, tmp_path)
    with torch.no_grad():
        for p in small.parameters():
            p.add_(1.0)
    before = {name: p.clone() for name, p in small.named_parameters()}
    load_weights(small, tmp_path)
    changed = [name for name, p in small.named_parameters() if not torch.equal(p, before[name])]
    assert changed and all("lora_" in name for name in changed)
