"""Assembling LLaVA v1 from the files of Vicuna, CLIP and LLaVA gives the golden model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fixtures import golden
from fixtures import official_layout as layout
from fixtures.hub_server import HubServer
from safetensors.torch import load_file

from m2pt_cli.convert.llava_v1 import import_base
from m2pt_cli.data.chat import get_template
from m2pt_cli.data.sample import Turn
from m2pt_cli.errors import DeviceError, UnavailableError
from m2pt_cli.models.fingerprint import base_fingerprint
from m2pt_cli.models.load import load_base


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layout.write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def base(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases") / "llava-v1"
    result = build(parts, folder)
    assert (result.kind, result.base, result.lm_head) == ("base", str(folder), None)
    assert result.bytes == (folder / "model.safetensors").stat().st_size
    return folder


@pytest.fixture(scope="module")
def loaded(base: Path) -> Any:
    return load_base(str(base), device="cpu")


def build(parts: Path, folder: Path) -> Any:
    return import_base(str(parts / "vicuna"), str(parts / "clip"), str(parts / "projector"), folder)


def test_logits_of_the_bare_base_are_the_goldens(loaded: Any) -> None:
    assert loaded.model.config.image_token_id == golden.IMAGE_TOKEN
    expected = golden.outputs("baseline")
    for sample in ("sample0", "sample1", "sample2", "batch"):
        inputs = golden.inputs(sample, "baseline")
        with torch.no_grad():
            logits = loaded.model(**inputs).logits
        mask = inputs["attention_mask"].bool()
        torch.testing.assert_close(logits[mask], expected[f"{sample}.logits"][mask], atol=2e-4, rtol=0)


def test_weights_are_stored_as_they_came(base: Path, loaded: Any) -> None:
    stored = load_file(base / "model.safetensors")
    # Vicuna's two bytes a value stay two, CLIP's four stay four.
    assert stored["model.language_model.embed_tokens.weight"].dtype == torch.float16
    assert stored["model.vision_tower.post_layernorm.weight"].dtype == torch.float32
    assert sum(tensor.numel() for tensor in stored.values()) == loaded.entry.geometry.total_parameters
    assert loaded.entry.geometry.projector == "linear"
    assert [file.name for file in base.iterdir() if file.name.startswith(".")] == []


def test_the_processor(loaded: Any) -> None:
    processor = loaded.processor
    tokenizer = processor.tokenizer
    ids = tokenizer("USER: <image>\nis the").input_ids
    assert ids[0] == tokenizer.bos_token_id == 1
    assert ids.count(golden.IMAGE_TOKEN) == 1 and processor.image_token_id == golden.IMAGE_TOKEN
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.pad_token_id) == ("</s>", "<unk>", 0)
    assert processor.image_processor.crop_size == {"height": 32, "width": 32}
    turns = [Turn("user", "<image>\nis the red"), Turn("assistant", "the"), Turn("user", "what?")]
    for count in (1, 2, 3):
        own = get_template("base", processor).render(turns[:count], eos="</s>")
        assert own == get_template("vicuna_v1").render(turns[:count], eos="</s>")


@pytest.mark.slow
def test_the_alias_is_assembled_once_from_the_hub(parts: Path, tmp_path: Path, base: Path) -> None:
    hub = tmp_path / "hub" / "models"
    layout.copied(parts / "vicuna", hub / "lmsys/vicuna-7b-v1.3")
    clip = layout.copied(parts / "clip", hub / "openai/clip-vit-large-patch14")
    (clip / "pytorch_model.bin").write_bytes(b"the same, pickled")
    layout.copied(parts / "projector", hub / "liuhaotian/llava-pretrain-vicuna-7b-v1.3")
    # The catalogue's entry with the tiny model's geometry; everything else is as it is.
    code = (
        "import dataclasses, json, sys; from m2pt_cli.models import catalog;"
        f"geometry = catalog.entry_of({str(base)!r}).geometry;"
        "catalog._ENTRIES = tuple(dataclasses.replace(e, known_geometry=geometry) if e.parts else e"
        " for e in catalog._ENTRIES);"
        "from m2pt_cli.models.load import load_base, load_base_processor;"
        "told = [];"
        "load_base_processor(catalog.entry_of('llava-v1-7b'), report=told.append);"
        "before = len(told);"
        "loaded = load_base('llava-v1-7b', device='cpu', report=told.append);"
        "print(json.dumps([loaded.name, loaded.fingerprint, told, before]))"
    )
    with HubServer(tmp_path / "hub") as server:
        environment = server.environment(tmp_path / "home")
        # Two at once, as the processes of one training: one assembles, the other waits.
        both = [finished(process) for process in [start(code, environment), start(code, environment)]]
        asked = {request.path.rpartition("/")[2] for request in server.requests if "/resolve/" in request.path}
    expected = ["llava-v1-7b", base_fingerprint(base)]
    assert [found[:2] for found in both] == [expected, expected]
    assert "pytorch_model.bin" not in asked and "mm_projector.bin" in asked
    assert sorted(before for *_, before in both) == [0, 2], "the processor needs no weights, and is made once"
    told = [line for _, _, lines, _ in both for line in lines]
    assert any("is assembled, once, from lmsys/vicuna-7b-v1.3" in line for line in told)
    assert len([line for line in told if line.startswith("writing 121 tensors")]) == 1
    assert all("free" in line for line in told if line.startswith("downloading"))
    again = finished(start(code, {**environment, "HF_HUB_OFFLINE": "1"}))
    assert again == [*expected, [], 0]


def start(code: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> Any:
    out, err = process.communicate()
    assert process.returncode == 0, err
    return json.loads(out)


def damaged(parts: Path, tmp_path: Path, name: str) -> Path:
    """A copy of the parts whose file ``name`` is about to be changed."""
    return layout.copied(parts, tmp_path / "parts") / name


def refused(place: Path, folder: Path, *said: str) -> None:
    with pytest.raises(UnavailableError) as caught:
        build(place, folder)
    for text in said:
        assert text in f"{caught.value.message} {caught.value.hint}", caught.value.message
    assert "\n" not in caught.value.message and not folder.exists()


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("vicuna/config.json", {"hidden_size": 48}, "mm_projector.bin has shape [96, 64], [48, 64] is expected"),
        ("vicuna/config.json", {"num_hidden_layers": 6}, "lacks model.layers.5"),
        ("vicuna/config.json", {"vocab_size": 100}, "has 128 tokens, its model 100 embeddings"),
        ("vicuna/config.json", {"model_type": "opt"}, "is a opt, not a LLaMA"),
        ("vicuna/config.json", {"hidden_size": "wide"}, "config.json of a part can't be used"),
        ("clip/config.json", {"model_type": "siglip"}, "is a siglip, not a CLIP"),
        ("clip/preprocessor_config.json", {"crop_size": 16}, "the tower takes 32 pixels"),
        ("clip/preprocessor_config.json", {"crop_size": "x"}, "preprocessor_config.json can't be used"),
    ],
)
def test_parts_that_do_not_fit(parts: Path, tmp_path: Path, file: str, change: dict[str, Any], said: str) -> None:
    place = damaged(parts, tmp_path, file)
    place.write_text(json.dumps(json.loads(place.read_text()) | change))
    refused(tmp_path / "parts", tmp_path / "base", said)


def test_damaged_parts(parts: Path, tmp_path: Path) -> None:
    place = damaged(parts, tmp_path, "vicuna/tokenizer.model")
    place.write_bytes(place.read_bytes()[:-3])
    refused(tmp_path / "parts", tmp_path / "base", "tokenizer.model can't be used: it is not a SentencePiece model")
    layout.write_tokenizer(place)
    projector = tmp_path / "parts/projector/mm_projector.bin"
    mlp = {"model.mm_projector.0.weight": torch.ones(96, 64), "model.mm_projector.2.weight": torch.ones(96, 96)}
    torch.save(mlp, projector)
    refused(tmp_path / "parts", tmp_path / "base", "lacks model.mm_projector.weight; it holds model.mm_projector.0")
    torch.save({"x": Path("y")}, projector)
    refused(tmp_path / "parts", tmp_path / "base", "code, which is not run")
    layout.write_projector(projector)
    (tmp_path / "parts/vicuna/config.json").write_text("[" * 100_000)
    refused(tmp_path / "parts", tmp_path / "base", "config.json can't be read")


def test_a_tower_saved_alone(parts: Path, tmp_path: Path, loaded: Any) -> None:
    place = damaged(parts, tmp_path, "clip")
    weights = load_file(place / "model.safetensors")
    alone = {name.removeprefix("vision_model."): tensor for name, tensor in weights.items()}
    layout.save(alone, place / "model.safetensors")
    config = json.loads((place / "config.json").read_text())["vision_config"]
    # What CLIP's published config holds beside the shape.
    legacy = {"num_beams": 1, "max_length": 20, "torch_dtype": None, "_name_or_path": "", "return_dict": True}
    (place / "config.json").write_text(json.dumps(config | legacy))
    build(tmp_path / "parts", tmp_path / "base")
    assert load_base(str(tmp_path / "base"), device="cpu").fingerprint == loaded.fingerprint


def test_the_disk_is_looked_at_first(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(DeviceError, match=r"needs 1\.6 MB, and its disk has 1\.0 kB free") as caught:
        build(parts, tmp_path / "base")
    assert not (tmp_path / "base").exists()
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    with pytest.raises(DeviceError, match=r"llava-v1-7b needs 14\.7 GB") as caught:
        load_base("llava-v1-7b", device="cpu")
    assert "HF_HOME" in (caught.value.hint or "")
