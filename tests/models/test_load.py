"""Loading a base: checks come first; the model is loaded straight to the device, frozen and without output."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from m2pt_cli.errors import DeviceError, SettingsError, UnavailableError
from m2pt_cli.models import load as loading
from m2pt_cli.models.catalog import entry_of
from m2pt_cli.models.fingerprint import base_fingerprint
from m2pt_cli.models.load import load_base, load_base_processor


def test_a_loaded_base(bases: Callable[..., Path]) -> None:
    loaded = load_base(str(bases()), device="cpu")
    assert loaded.name == str(bases())
    assert loaded.fingerprint == base_fingerprint(bases())
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32} == {loaded.dtype}
    assert loaded.device == loaded.model.device == torch.device("cpu")
    assert loaded.model.num_parameters() == loaded.entry.geometry.total_parameters
    # What PEFT writes into an adapter.
    assert loaded.model.name_or_path == str(bases())
    assert loaded.adapter is None


def test_the_type_is_the_asked_one_and_the_fingerprint_stays(bases: Callable[..., Path], loaded: Any) -> None:
    half = load_base(str(bases()), device="cpu", dtype="bfloat16")
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}
    assert half.fingerprint == loaded.fingerprint


def test_a_linear_projector_stays_one_through_saving(bases: Callable[..., Path], tmp_path: Path) -> None:
    first = load_base(str(bases(projector="linear")), device="cpu")
    assert type(first.model).__name__ == "LlavaForConditionalGeneration"
    assert isinstance(first.model.model.multi_modal_projector, torch.nn.Linear)
    first.model.save_pretrained(tmp_path)
    first.processor.save_pretrained(tmp_path)
    again = load_base(str(tmp_path), device="cpu")
    assert again.fingerprint == first.fingerprint
    values = dict(again.model.named_parameters())
    assert all(torch.equal(value, values[name]) for name, value in first.model.named_parameters())
    # Other bases are built as ever.
    assert "linear_1" in dict(load_base(str(bases()), device="cpu").model.model.multi_modal_projector.named_children())


def test_loading_is_silent(bases: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    logging.enable_progress_bar()
    try:
        load_base(str(bases()), device="cpu")
        assert logging.is_progress_bar_enabled(), "the user's own setting comes back"
    finally:
        logging.disable_progress_bar()
    assert capfd.readouterr() == ("", "")


def test_weights_of_another_base(copied: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    del tensors["language_model.model.norm.weight"]
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnavailableError, match=r"norm\.weight"):
        load_base(str(copied), device="cpu")


def test_stored_quantised(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"quantization_config": {"load_in_4bit": True}}))
    with pytest.raises(UnavailableError, match="stored quantised"):
        load_base(str(copied), device="cpu")


def test_a_7b_base_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("M2PT_DEVICE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=r"7\.1 billion parameters.*28\.3 GB.*minutes") as caught:
        load_base("llava-1.5-7b")
    assert "--base nano" in (caught.value.hint or "") and "--device cpu" in (caught.value.hint or "")
    # Said, it is tried: here the next obstacle is the missing download.
    for said in ({"device": "cpu"}, {}):
        if not said:
            monkeypatch.setenv("M2PT_DEVICE", "cpu")
        with pytest.raises(UnavailableError, match=r"llava-hf/llava-1\.5-7b-hf"):
            load_base("llava-1.5-7b", **said)


def test_a_processor_without_the_weights(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    processor = load_base_processor(entry_of(str(copied)))
    assert processor.patch_size == 4 and processor.tokenizer.eos_token == "</s>"
    with pytest.raises(UnavailableError, match=r"lacks model\.safetensors"):
        load_base(str(copied), device="cpu")


def test_cuda_that_is_not_there(bases: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="no CUDA device"):
        load_base(str(bases()), device="cuda")


def test_llava_v1_names_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    told: list[str] = []
    with pytest.raises(UnavailableError, match=r"lmsys/vicuna-7b-v1\.3 is not in the cache") as caught:
        load_base("llava-v1-7b", device="cpu", report=told.append)
    assert "hf download lmsys/vicuna-7b-v1.3" in (caught.value.hint or "") and "exclude" not in (
        caught.value.hint or ""
    )
    assert "clip-vit-large-patch14, liuhaotian/llava-pretrain-vicuna-7b-v1.3: about 14.7 GB in" in told[0]


def test_quantisation(bases: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(bases())
    with pytest.raises(SettingsError, match="'3bit'"):
        load_base(folder, device="cpu", quantization="3bit")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="bitsandbytes") as caught:
        load_base(folder, device="cpu", quantization="4bit")
    assert caught.value.hint == "python -m pip install 'm2pt_cli[quant]'"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(DeviceError, match="needs a CUDA device"):
        load_base(folder, device="cpu", quantization="8bit")


def test_a_hub_base_is_named_by_its_id(
    bases: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[str] = []

    def fetch(repo_id: str, *, report: Callable[[str], None]) -> Path:
        report(f"downloading {repo_id}")
        return bases()

    monkeypatch.setattr("m2pt_cli.models.hub.fetch_config", lambda repo_id: bases())
    monkeypatch.setattr(loading, "fetch_base", fetch)
    loaded = load_base("somebody/llava", device="cpu", report=told.append)
    assert loaded.name == loaded.model.name_or_path == loaded.entry.repo_id == "somebody/llava"
    assert told == ["downloading somebody/llava"]
