"""Adapters to compare: their bases must agree, which is checked before loading; the prompt format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from m2pt_cli.errors import AdapterError
from m2pt_cli.generation.candidates import prompt_format, read_candidates
from m2pt_cli.models.catalog import entry_of
from m2pt_cli.models.fingerprint import base_fingerprint


def adapter(folder: Path, base: str | None, **config: object) -> str:
    folder.mkdir()
    save_file({"a": np.zeros((1, 1), np.float32)}, folder / "adapter_model.safetensors")
    values = {"peft_type": "M2PT", "num_visual_prompts": 1, "num_textual_prompts": 1, "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps({**values, **config}), encoding="utf-8")
    return str(folder)


def test_the_base_is_the_users_then_the_adapters_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("M2PT_BASE", raising=False)
    own = adapter(tmp_path / "own", "nano")
    silent = adapter(tmp_path / "silent", None)
    assert read_candidates((own, "none"), None).base == "nano"
    assert [member.name for member in read_candidates((own, "none"), None).members] == [own, None]
    assert read_candidates((silent, own), None).base == "nano"
    assert read_candidates((silent,), "llava-1.5-7b").base == "llava-1.5-7b"
    assert read_candidates((), None).base == "llava-1.5-7b"


def test_adapters_of_two_bases_are_refused_unless_the_base_is_named(tmp_path: Path) -> None:
    adapters = (adapter(tmp_path / "a", "nano"), adapter(tmp_path / "b", "llava-1.5-7b"))
    with pytest.raises(AdapterError, match="a was trained on nano, b on llava"):
        read_candidates(adapters, None)
    assert read_candidates(adapters, "nano").base == "nano"


def test_other_weights_under_the_same_name_are_met_before_anything_is_loaded(tmp_path: Path) -> None:
    entry = entry_of("nano")
    assert entry.folder is not None
    good = adapter(tmp_path / "good", "nano", base_fingerprint=base_fingerprint(entry.folder))
    bad = adapter(tmp_path / "bad", "nano", base_fingerprint="0" * 64)
    assert len(read_candidates((good,), None).members) == 1
    with pytest.raises(AdapterError, match="bad was trained on nano"):
        read_candidates((good, bad), None)


def test_the_format_is_the_users_then_the_adapters_then_the_bases(tmp_path: Path) -> None:
    entry = entry_of("nano")
    found = read_candidates((adapter(tmp_path / "a", "nano", chat_template="vicuna_v1", image_fit="pad"),), None)
    info = found.members[0].info
    assert prompt_format(entry, None).template == entry.defaults.template
    chosen = prompt_format(entry, info, image_fit="crop")
    assert (chosen.template, chosen.image_fit) == ("vicuna_v1", "crop")
    assert chosen.warnings == ("--image-fit crop differs from pad, with which the adapter a was trained",)
    assert prompt_format(entry, info, template="vicuna_v1").warnings == ()
