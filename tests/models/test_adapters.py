"""Adapters: every fault is an AdapterError; an attached adapter takes effect, and only on its own base."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.bases import write_adapter
from PIL import Image
from safetensors.torch import load_file, save_file

from m2pt_cli.errors import AdapterError
from m2pt_cli.models.adapters import attach_adapter, detach_adapter, read_adapter
from m2pt_cli.models.load import load_base

IMAGE = Image.linear_gradient("L").convert("RGB")


def logits(loaded: Any, model: Any) -> torch.Tensor:
    batch = loaded.processor(text="USER : <image> what is the circle ASSISTANT :", images=IMAGE, return_tensors="pt")
    with torch.no_grad():
        last: torch.Tensor = model(**batch).logits[0, -1]
    return last


@pytest.fixture
def damaged(adapter_folder: Path, tmp_path: Path) -> Path:
    """A copy of an adapter, to be damaged."""
    return Path(shutil.copytree(adapter_folder, tmp_path / "damaged"))


def change(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_what_the_files_say(adapter_folder: Path, loaded: Any) -> None:
    info = read_adapter(str(adapter_folder))
    assert (info.name, info.peft_type, info.method) == ("demo", "M2PT", "m2pt")
    assert (info.num_visual_prompts, info.num_textual_prompts, info.interaction) == (2, 3, "residual")
    assert (info.chat_template, info.image_fit, info.visual_tokens) == ("plain", "crop", "patches")
    assert info.base == loaded.name and info.base_fingerprint == loaded.fingerprint
    assert info.bytes == (adapter_folder / "adapter_model.safetensors").stat().st_size
    assert len(info.fingerprint) == 64
    assert {tensor.name for tensor in info.tensors()} == set(load_file(adapter_folder / "adapter_model.safetensors"))


@pytest.mark.parametrize(
    ("visual", "textual", "method"), [(2, 3, "m2pt"), (2, 0, "visual"), (0, 3, "textual"), (0, 0, "interaction")]
)
def test_the_method_follows_from_the_prompts(damaged: Path, visual: int, textual: int, method: str) -> None:
    change(damaged, num_visual_prompts=visual, num_textual_prompts=textual)
    assert read_adapter(str(damaged)).method == method


def test_a_known_hub_id_becomes_its_alias(damaged: Path) -> None:
    for said, base in (("llava-hf/llava-1.5-7b-hf", "llava-1.5-7b"), ("nano", "nano"), ("a/b", "a/b"), (None, None)):
        change(damaged, base_model_name_or_path=said)
        assert read_adapter(str(damaged)).base == base


def test_the_fingerprint_is_that_of_the_weights(damaged: Path, adapter_folder: Path) -> None:
    change(damaged, chat_template="vicuna_v1")
    assert read_adapter(str(damaged)).fingerprint == read_adapter(str(adapter_folder)).fingerprint
    tensors = load_file(damaged / "adapter_model.safetensors")
    save_file({name: value + 1 for name, value in tensors.items()}, damaged / "adapter_model.safetensors")
    assert read_adapter(str(damaged)).fingerprint != read_adapter(str(adapter_folder)).fingerprint


def test_missing_folders(tmp_path: Path) -> None:
    (tmp_path / "demo-1").mkdir()
    for name, said, hint in (
        (str(tmp_path / "demo_1"), "no adapter folder", f"did you mean {tmp_path / 'demo-1'}?"),
        (str(tmp_path / "other"), "no adapter folder", "train one: m2pt train --base nano --data demo"),
        ("", "holds no adapter_config.json", "name the folder m2pt train wrote"),
        ("somebody/adapter", "not in the cache", "on a machine with a network: hf download somebody/adapter"),
        (str(tmp_path / "demo-1"), "is empty", "name the folder that m2pt train wrote"),
        (__file__, "is a file", "give the folder"),
    ):
        with pytest.raises(AdapterError, match=said) as caught:
            read_adapter(name)
        assert (caught.value.hint or "").startswith(hint), name
        assert caught.value.exit_code == 4


def test_a_name_beside_other_runs_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AdapterError, match="no folder runs/demo, and the adapter runs/demo is not in the cache"):
        read_adapter("runs/demo")
    (tmp_path / "runs" / "demo-2").mkdir(parents=True)
    with pytest.raises(AdapterError, match=r"no adapter folder runs/demo$") as caught:
        read_adapter("runs/demo")
    assert caught.value.hint == "did you mean runs/demo-2?"


def test_missing_files(damaged: Path, tmp_path: Path) -> None:
    weights = (damaged / "adapter_model.safetensors").read_bytes()
    (damaged / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"holds no adapter_model\.safetensors"):
        read_adapter(str(damaged))
    (damaged / "adapter_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(AdapterError, match=r"adapter_model\.bin, a pickle"):
        read_adapter(str(damaged))
    (damaged / "adapter_config.json").rename(damaged / "config.json")
    (damaged / "adapter_model.safetensors").write_bytes(weights)
    with pytest.raises(AdapterError, match=r"holds no adapter_config\.json") as caught:
        read_adapter(str(damaged))
    assert caught.value.hint == f"it is a whole model: give it with --base {damaged}"


def test_an_unfinished_run(adapter_folder: Path, tmp_path: Path) -> None:
    for step in (90, 100):
        shutil.copytree(adapter_folder, tmp_path / f"checkpoint-{step}")
    with pytest.raises(AdapterError, match="but checkpoints") as caught:
        read_adapter(str(tmp_path))
    assert f"--resume --output-dir {tmp_path}" in (caught.value.hint or "")
    assert str(tmp_path / "checkpoint-100") in (caught.value.hint or "")


def test_a_run_that_lost_its_adapter_is_sent_to_resume(damaged: Path) -> None:
    (damaged / "run.yaml").write_text("settings: {}\n")
    resume = f"m2pt train --resume --output-dir {damaged}"
    weights = damaged / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(AdapterError, match="cut short") as caught:
        read_adapter(str(damaged))
    assert (caught.value.hint or "").startswith(resume)
    weights.unlink()
    with pytest.raises(AdapterError, match="is a training run without its adapter") as caught:
        read_adapter(str(damaged))
    assert (caught.value.hint or "").startswith(resume) and "begins at the first step" in (caught.value.hint or "")
    shutil.copytree(damaged, damaged / "checkpoint-9")
    with pytest.raises(AdapterError, match="but checkpoints") as caught:
        read_adapter(str(damaged))
    assert (caught.value.hint or "").startswith(resume)


def test_adapters_that_lie_below(adapter_folder: Path, tmp_path: Path) -> None:
    """PEFT saves an adapter of another name than ``default`` in a folder of that name."""
    shutil.copytree(adapter_folder, tmp_path / "mine")
    with pytest.raises(AdapterError, match="no adapter itself, but 1 below it: mine") as caught:
        read_adapter(str(tmp_path))
    assert caught.value.hint == f"--adapter {tmp_path / 'mine'}"


def test_weights_under_another_name(damaged: Path) -> None:
    (damaged / "adapter_model.safetensors").rename(damaged / "pytorch_lora_weights.safetensors")
    with pytest.raises(AdapterError, match=r"holds no adapter_model.safetensors, but pytorch_lora_weights.safetensors"):
        read_adapter(str(damaged))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "can't be read"),
        ("[]", "mapping"),
        ('{"peft_type": "PREFIX_TUNING"}', "PREFIX_TUNING adapter"),
        ("{}", "None adapter"),
        ('{"peft_type": "M2PT"}', "num_visual_prompts is None"),
        ('{"peft_type": "M2PT", "num_visual_prompts": -1}', "num_visual_prompts is -1"),
        ('{"peft_type": "M2PT", "num_visual_prompts": true}', "num_visual_prompts is True"),
        ('{"peft_type": "LORA", "chat_template": "chatml"}', "chat_template is 'chatml'"),
        ('{"peft_type": "LORA", "base_fingerprint": 3}', "base_fingerprint is 3"),
        ('{"peft_type": "LORA", "base_model_name_or_path": 3}', "base_model_name_or_path is 3"),
    ],
)
def test_damaged_configs(damaged: Path, content: str, said: str) -> None:
    (damaged / "adapter_config.json").write_text(content)
    with pytest.raises(AdapterError, match=said):
        read_adapter(str(damaged))


def test_damaged_weights(damaged: Path) -> None:
    file = damaged / "adapter_model.safetensors"
    whole = file.read_bytes()
    for content, said in ((whole[:-4], "cut short"), (b"", "cut short"), (b"\x02" + bytes(7) + b"{}", "no weights")):
        file.write_bytes(content)
        with pytest.raises(AdapterError, match=said):
            read_adapter(str(damaged))


@pytest.mark.parametrize(("options", "method"), [({}, "lora"), ({"projector": "linear"}, "m2pt"), ({}, "m2pt")])
def test_attached_it_acts_and_detached_the_base_is_as_before(
    bases: Callable[..., Path], tmp_path: Path, options: dict[str, str], method: str
) -> None:
    loaded = load_base(str(bases(**options)), device="cpu")
    before = logits(loaded, loaded.model)
    folder = write_adapter(tmp_path / "a", loaded, method=method, visual_tokens="official")
    stored = load_file(folder / "adapter_model.safetensors")
    model = attach_adapter(loaded, read_adapter(str(folder)))
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    own = {name.replace(".default", "").replace(".modules_to_save", ""): p for name, p in model.named_parameters()}
    assert all(torch.equal(own[name], value) for name, value in stored.items())
    batch = loaded.processor(text="<image>", images=IMAGE)
    assert len(batch["input_ids"][0]) == (9 if method == "lora" else 11)
    assert (logits(loaded, model) - before).abs().max() > 0.1
    with pytest.raises(AdapterError, match="holds the adapter a already"):
        info = read_adapter(str(folder))
        attach_adapter(dataclasses.replace(loaded, model=model, adapter=info), info)
    detach_adapter(loaded, model)
    assert torch.equal(logits(loaded, loaded.model), before)
    assert not any("m2pt" in name or "lora" in name for name, _ in loaded.model.named_modules())


def test_another_base_is_refused_with_both_names(adapter_folder: Path, bases: Callable[..., Path]) -> None:
    other = load_base(str(bases(seed=1)), device="cpu")
    info = read_adapter(str(adapter_folder))
    with pytest.raises(AdapterError, match=r"trained on .* this base is") as caught:
        attach_adapter(other, info)
    for part in (str(info.base), str(info.base_fingerprint)[:12], other.name, str(other.fingerprint)[:12]):
        assert part in caught.value.message
    assert caught.value.hint == f"m2pt ... --base {info.base}"


def test_weights_that_do_not_fit(damaged: Path, loaded: Any) -> None:
    file = damaged / "adapter_model.safetensors"
    tensors = load_file(file)
    first = min(tensors)
    before = logits(loaded, loaded.model)
    for changed, said in (
        ({name: value for name, value in tensors.items() if name != first}, rf"1 missing \(the first is {first}\)"),
        (tensors | {"base_model.model.extra.lora_A.weight": torch.ones(1)}, "1 unexpected"),
        (tensors | {first: torch.ones(7, 5)}, r"is \[7, 5\] in the file and \[3, 24\] by the config"),
    ):
        save_file(changed, file, metadata={"format": "pt"})
        with pytest.raises(AdapterError, match=said):
            attach_adapter(loaded, read_adapter(str(damaged)))
        assert torch.equal(logits(loaded, loaded.model), before), "the base must be left as it was"


def test_configs_that_the_method_refuses(damaged: Path, loaded: Any, bases: Callable[..., Path]) -> None:
    change(damaged, num_visual_prompts=5)
    with pytest.raises(AdapterError, match=r"is \[2, 16\] in the file and \[5, 16\] by the config"):
        attach_adapter(loaded, read_adapter(str(damaged)))
    change(damaged, visual_tokens="official", base_fingerprint=None, num_visual_prompts=2)
    with pytest.raises(AdapterError, match="no class token"):
        attach_adapter(load_base(str(bases(tower="siglip")), device="cpu"), read_adapter(str(damaged)))


def test_what_m2pt_adds_to_a_lora_adapter_is_read(tmp_path: Path, loaded: Any) -> None:
    folder = write_adapter(tmp_path / "lora", loaded, method="lora")
    change(folder, chat_template="plain", image_fit="pad", base_fingerprint=loaded.fingerprint)
    info = read_adapter(str(folder))
    assert (info.chat_template, info.image_fit, info.base_fingerprint) == ("plain", "pad", loaded.fingerprint)
    detach_adapter(loaded, attach_adapter(loaded, info))
    change(folder, base_fingerprint="0" * 64)
    with pytest.raises(AdapterError, match="fingerprint 000000000000"):
        attach_adapter(loaded, read_adapter(str(folder)))
