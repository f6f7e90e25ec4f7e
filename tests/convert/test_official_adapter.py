"""Imported adapters reproduce the authors' outputs; a checkpoint of another base is rejected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import golden
from fixtures import official_layout as layout
from safetensors.torch import load_file

from m2pt_cli.convert.llava_v1 import import_base
from m2pt_cli.convert.official_adapter import import_official
from m2pt_cli.errors import AdapterError, SettingsError
from m2pt_cli.models.adapters import attach_adapter, detach_adapter, read_adapter
from m2pt_cli.models.catalog import entry_of
from m2pt_cli.models.load import load_base

HEAD = "lm_head.weight"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    parts = layout.write_parts(tmp_path_factory.mktemp("parts"))
    folder = tmp_path_factory.mktemp("bases") / "llava-v1"
    import_base(str(parts / "vicuna"), str(parts / "clip"), str(parts / "projector"), folder)
    return load_base(str(folder), device="cpu")


def imported(place: Path, folder: Path, loaded: Any) -> tuple[Any, list[str]]:
    told: list[str] = []
    return import_official(place, folder, loaded.entry, report=told.append), told


def logits(loaded: Any, adapter: Path, sample: str) -> torch.Tensor:
    model = attach_adapter(loaded, read_adapter(str(adapter)))
    try:
        with torch.no_grad():
            return model(**golden.inputs(sample, "official")).logits
    finally:
        detach_adapter(loaded, model)


def test_an_imported_adapter_gives_the_goldens(tmp_path: Path, loaded: Any) -> None:
    official = layout.write_shards(tmp_path / "official", layout.official_tensors())
    result, told = imported(official, tmp_path / "adapter", loaded)
    assert sorted(file.name for file in (tmp_path / "adapter").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    for sample in ("sample0", "sample1", "sample2", "batch"):
        found = logits(loaded, tmp_path / "adapter", sample)
        mask = golden.inputs(sample, "official")["attention_mask"].bool()
        expected = golden.outputs("official")[f"{sample}.logits"][:, golden.TEXTUAL :]
        torch.testing.assert_close(found[mask], expected[mask], atol=2e-4, rtol=0)
    assert (result.visual_prompts, result.textual_prompts, result.lm_head) == (3, 5, False)
    assert result.trainable == 4 * 3 * 64 + 5 * 5 * 96 + 96 * 65
    assert result.bytes == (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
    assert told == [
        f"118 frozen weights of the checkpoint are those of {loaded.name}; they are left out",
        "lm_head is the base's; it is left out",
    ]


def test_the_config_says_what_inference_needs(tmp_path: Path, loaded: Any) -> None:
    layout.save(layout.official_tensors(), tmp_path / "official.bin")
    imported(tmp_path / "official.bin", tmp_path / "adapter", loaded)
    info = read_adapter(str(tmp_path / "adapter"))
    assert (info.chat_template, info.image_fit, info.visual_tokens) == ("vicuna_v1", "crop", "official")
    assert (info.method, info.interaction, info.base) == ("m2pt", "projector", loaded.name)
    assert info.base_fingerprint == loaded.fingerprint is not None
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "base_model" not in card and loaded.name not in card and "118 frozen weights" in card


def test_a_trained_head_is_kept(tmp_path: Path, loaded: Any) -> None:
    tensors = layout.official_tensors()
    tensors[HEAD] = tensors[HEAD] * 2
    layout.save(tensors, tmp_path / "official.bin")
    result, told = imported(tmp_path / "official.bin", tmp_path / "adapter", loaded)
    assert result.lm_head and "lm_head differs from the base's and is kept: 12,288 values, 49.2 kB" in told
    found = logits(loaded, tmp_path / "adapter", "sample1")
    expected = 2 * golden.outputs("official")["sample1.logits"][:, golden.TEXTUAL :]
    torch.testing.assert_close(found, expected, atol=4e-4, rtol=0)
    # One value is enough.
    tensors = layout.official_tensors()
    tensors[HEAD][127, 95] += 0.01
    layout.save(tensors, tmp_path / "one.bin")
    assert imported(tmp_path / "one.bin", tmp_path / "second", loaded)[0].lm_head


@pytest.mark.parametrize(
    "passed", [(torch.bfloat16,), (torch.bfloat16, torch.float16), (torch.bfloat16, torch.float32)]
)
def test_rounding_is_no_difference(tmp_path: Path, loaded: Any, passed: tuple[torch.dtype, ...]) -> None:
    """As trained in bf16, and as saved by ZeRO in fp32 or half by hand."""
    tensors = layout.official_tensors()
    for dtype in passed:
        tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    layout.save(tensors, tmp_path / "official.safetensors")
    result, told = imported(tmp_path / "official.safetensors", tmp_path / "adapter", loaded)
    assert result.lm_head is False and "118 frozen weights" in told[0]
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {passed[-1]}
    logits(loaded, tmp_path / "adapter", "sample0")


def test_another_base_is_refused(tmp_path: Path, loaded: Any) -> None:
    tensors = layout.official_tensors()
    for name in ("model.layers.3.mlp.up_proj.weight", f"{layout.TOWER}encoder.layers.1.mlp.fc1.weight"):
        tensors[name] = tensors[name] * 1.05
    layout.save(tensors, tmp_path / "official.bin")
    with pytest.raises(
        AdapterError, match=r"another base than .*: 2 of 118 frozen weights differ, the first model"
    ) as e:
        imported(tmp_path / "official.bin", tmp_path / "adapter", loaded)
    assert "--base" in (e.value.hint or "")
    assert not (tmp_path / "adapter").exists()


def test_trained_parts_alone_say_that_nothing_was_compared(tmp_path: Path, loaded: Any) -> None:
    tensors = layout.official_tensors(whole=False)
    layout.save({name: t for name, t in tensors.items() if "encoder.prompts" not in name}, tmp_path / "official.bin")
    _, told = imported(tmp_path / "official.bin", tmp_path / "adapter", loaded)
    assert "holds no frozen weights" in told[0] and told[1] == "the checkpoint has no visual prompts"
    info = read_adapter(str(tmp_path / "adapter"))
    assert info.method == "textual" and info.num_visual_prompts == 0
    # Without visual prompts the patches alone reach the language model.
    model = attach_adapter(loaded, info)
    with torch.no_grad():
        assert model(**golden.inputs("sample0", "drop")).logits.isfinite().all()
    detach_adapter(loaded, model)


def test_nothing_is_left_half_written(tmp_path: Path, loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    official = layout.save(layout.official_tensors(), tmp_path / "in" / "official.bin")

    def fail(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("m2pt_cli.convert.official_adapter.official_card", fail)
    for folder in (tmp_path / "new", tmp_path / "empty"):
        if folder.name == "empty":
            folder.mkdir()
        with pytest.raises(OSError, match="No space"):
            imported(official, folder, loaded)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "in"]
    assert not list((tmp_path / "empty").iterdir())
    monkeypatch.undo()
    imported(official, tmp_path / "empty", loaded)
    with pytest.raises(SettingsError, match="is not empty"):
        imported(official, tmp_path / "empty", loaded)


def test_bases_without_a_linear_projector(tmp_path: Path) -> None:
    layout.save(layout.official_tensors(), tmp_path / "official.bin")
    with pytest.raises(AdapterError, match="linear projector, which nano is not"):
        import_official(tmp_path / "official.bin", tmp_path / "adapter", entry_of("nano"))
