"""Official checkpoints: names, shapes and malicious files. No code in them runs; every fault is one line."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import official_layout as layout
from fixtures.hub_server import HubServer
from torch import Tensor

from m2pt_cli.convert.official import find_official, read_official
from m2pt_cli.errors import AdapterError
from m2pt_cli.families.geometry import Geometry
from m2pt_cli.models.catalog import entry_of

PROMPT = "model.prompts.2"


@pytest.fixture(scope="module")
def geometry(tmp_path_factory: pytest.TempPathFactory) -> Geometry:
    from m2pt_cli.convert.llava_v1_parts import PartFolders, write_texts

    folder = layout.write_parts(tmp_path_factory.mktemp("parts"))
    return write_texts(PartFolders(folder / "vicuna", folder / "clip", None), tmp_path_factory.mktemp("base"))


def refused(place: Path, geometry: Geometry, *said: str) -> AdapterError:
    with pytest.raises(AdapterError) as caught:
        read_official(find_official(str(place)), geometry, "base")
    error = caught.value
    assert "\n" not in error.message and len(error.message) < 1500, error.message
    assert "weights_only" not in f"{error.message} {error.hint}"
    for text in said:
        assert text in f"{error.message} {error.hint}", f"{error.message} {error.hint}"
    return error


@pytest.mark.parametrize("safe", [False, True])
def test_every_layout_is_read(tmp_path: Path, geometry: Geometry, safe: bool) -> None:
    tensors = layout.official_tensors()
    suffix = "safetensors" if safe else "bin"
    single = tmp_path / "single" / ("model.safetensors" if safe else "pytorch_model.bin")
    layout.save(tensors, single)
    layout.save(tensors, tmp_path / f"any.{suffix}")
    layout.write_shards(tmp_path / "shards", tensors, safe=safe)
    for place in (single.parent, tmp_path / f"any.{suffix}", tmp_path / "shards"):
        found = read_official(find_official(str(place)), geometry, "base")
        assert (found.num_visual_prompts, found.num_textual_prompts) == (3, 5)
        assert (len(found.visual), len(found.textual)) == (4, 5)
        for index, prompts in enumerate(found.textual):
            assert torch.equal(prompts, tensors[f"model.prompts.{index}"][0])
        for index, prompts in enumerate(found.visual):
            assert torch.equal(prompts, tensors[f"{layout.TOWER}encoder.prompts.{index}"][0])
        assert len(found.frozen) == 118 and found.lm_head is not None


def test_trained_parts_alone_will_do(tmp_path: Path, geometry: Geometry) -> None:
    layout.save(layout.official_tensors(whole=False), tmp_path / "trained.bin")
    found = read_official(tmp_path / "trained.bin", geometry, "base")
    assert found.frozen == {} and found.lm_head is None


def test_prompts_of_one_side_alone(tmp_path: Path, geometry: Geometry) -> None:
    tensors = {name: t for name, t in layout.official_tensors().items() if not name.startswith("model.prompts.")}
    layout.save(tensors, tmp_path / "visual.bin")
    found = read_official(tmp_path / "visual.bin", geometry, "base")
    assert (found.num_visual_prompts, found.num_textual_prompts) == (3, 0)


def test_a_checkpoint_on_the_hub(tmp_path: Path) -> None:
    layout.write_shards(tmp_path / "hub/models/authors/m2pt", layout.official_tensors())
    (tmp_path / "hub/models/authors/m2pt/optimizer.pt").write_bytes(b"large")
    code = (
        "import sys; from m2pt_cli.convert.official import find_official;"
        "place = find_official('authors/m2pt', report=lambda text: print(text, file=sys.stderr));"
        "print(*sorted(file.name for file in place.iterdir()), 'torch' in sys.modules)"
    )
    said = "pytorch_model-00001-of-00002.bin pytorch_model-00002-of-00002.bin pytorch_model.bin.index.json False\n"
    with HubServer(tmp_path / "hub") as server:
        environment = server.environment(tmp_path / "home")
        first = run(code, environment)
        missing = run(code.replace("authors/m2pt", "authors/none"), environment)
    assert first.stdout == said and "downloading authors/m2pt: 2.6 MB to" in first.stderr
    assert "AdapterError: there is no adapter authors/none" in missing.stderr
    again = run(code, {**environment, "HF_HUB_OFFLINE": "1"})
    assert again.stdout == said and again.stderr == ""


def run(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def change(**changes: Tensor | None) -> Callable[[dict[str, Tensor]], None]:
    def apply(tensors: dict[str, Tensor]) -> None:
        for name, tensor in changes.items():
            if tensor is None:
                del tensors[name]
            else:
                tensors[name] = tensor

    return apply


def without_prompts(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if "prompts." in name]:
        del tensors[name]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (change(**{PROMPT: None}), ["1 tensor is missing", PROMPT]),
        (change(**{"model.mm_projector.bias": None}), ["missing", "model.mm_projector.bias"]),
        (without_prompts, ["holds no prompts", "--base"]),
        (change(**{"model.surprise": torch.ones(2)}), ["1 tensor is unknown", "model.surprise"]),
        (change(**{"model.prompts.5": torch.ones(1, 5, 96)}), ["unknown", "model.prompts.5"]),
        (change(**{PROMPT: torch.ones(1, 4, 96)}), [f"{PROMPT} is [1, 4, 96] instead of [1, 5, 96]"]),
        (change(**{PROMPT: torch.ones(5, 96)}), [f"{PROMPT} is [5, 96]"]),
        (change(**{"lm_head.weight": torch.ones(129, 96)}), ["lm_head.weight is [129, 96] instead of [128, 96]"]),
        (change(**{"model.embed_tokens.weight": torch.ones(129, 96)}), ["model.embed_tokens.weight is [129, 96]"]),
        (change(**{PROMPT: torch.zeros(0)}), ["zero_to_fp32.py"]),
        (change(**{PROMPT: torch.full((1, 5, 96), float("nan"))}), ["NaN"]),
        (change(**{"lm_head.weight": torch.full((128, 96), float("inf"))}), ["lm_head", "infinite"]),
        (change(**{"model.mm_projector.weight": torch.ones(96, 64, dtype=torch.int8)}), ["int8"]),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, geometry: Geometry, damage: Callable[[dict[str, Tensor]], None], said: list[str]
) -> None:
    tensors = layout.official_tensors()
    damage(tensors)
    layout.save(tensors, tmp_path / "checkpoint.bin")
    refused(tmp_path / "checkpoint.bin", geometry, *said)


def test_faults_of_several_kinds_at_once(tmp_path: Path, geometry: Geometry) -> None:
    tensors = layout.official_tensors()
    tensors["x" * 5000] = tensors.pop(PROMPT)
    layout.save(tensors, tmp_path / "checkpoint.bin")
    refused(tmp_path / "checkpoint.bin", geometry, "1 tensor is missing", "1 tensor is unknown", "xxx...")


def test_a_base_with_another_projector(tmp_path: Path) -> None:
    layout.save(layout.official_tensors(), tmp_path / "checkpoint.bin")
    refused(tmp_path / "checkpoint.bin", entry_of("llava-1.5-7b").geometry, "linear projector", "llava-v1-7b")


class Attack:
    """Unpickled, it would make a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


def test_code_in_a_pickle_is_not_run(tmp_path: Path, geometry: Geometry) -> None:
    mark = tmp_path / "it ran"
    torch.save(layout.official_tensors() | {"model.x": Attack(mark)}, tmp_path / "zip.bin")  # type: ignore[operator]
    torch.save({"model.x": Attack(mark)}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.bin").write_bytes(pickle.dumps(Attack(mark)))
    for name in ("zip.bin", "old.bin", "bare.bin"):
        refused(tmp_path / name, geometry, name, "code, which is not run")
    assert not mark.exists()


def test_files_of_before_torch_1_6(tmp_path: Path, geometry: Geometry) -> None:
    torch.save(layout.official_tensors(), tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert len(read_official(tmp_path / "old.bin", geometry, "base").textual) == 5


def test_what_is_no_table_of_weights(tmp_path: Path, geometry: Geometry) -> None:
    wide = torch.ones(1).expand(10**12)
    sparse = torch.eye(3).to_sparse()
    nested = {"module": {"model.prompts.0": torch.ones(2)}}
    for content, said in (
        ([torch.ones(2)], "a list instead of weights"),
        ({}, "instead of weights by name"),
        (nested, "holds module of type dict"),
        ({3: torch.ones(2)}, "where weights by name are expected"),
        ({"model.x": wide}, "no plain tensor"),
        ({"model.x": sparse}, "no plain tensor"),
    ):
        torch.save(content, tmp_path / "odd.bin")
        refused(tmp_path / "odd.bin", geometry, said)


@pytest.mark.parametrize("safe", [False, True])
def test_a_file_cut_short(tmp_path: Path, geometry: Geometry, safe: bool) -> None:
    file = layout.save(layout.official_tensors(), tmp_path / ("model.safetensors" if safe else "pytorch_model.bin"))
    whole = file.read_bytes()
    for length in (0, 5, 200, len(whole) // 2, len(whole) - 40):
        file.write_bytes(whole[:length])
        refused(tmp_path, geometry, file.name)


def test_a_safetensors_file_that_claims_more_than_it_holds(tmp_path: Path, geometry: Geometry) -> None:
    head = json.dumps({PROMPT: {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(4))
    refused(tmp_path, geometry, "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes((2**60).to_bytes(8, "little") + head)
    refused(tmp_path, geometry, "cut short")


def write_index(folder: Path, places: Any) -> None:
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/passwd", "..", "", "a/b.bin", "a\\b.bin", "pytorch_model"])
def test_an_index_names_files_of_its_folder_alone(tmp_path: Path, geometry: Geometry, name: str) -> None:
    folder = tmp_path / "checkpoint"
    layout.save(layout.official_tensors(), tmp_path / "outside.bin")
    layout.save(layout.official_tensors(), folder / "pytorch_model")
    write_index(folder, {PROMPT: name})
    refused(folder, geometry, "checkpoint")


def test_links_out_of_the_folder(tmp_path: Path, geometry: Geometry) -> None:
    outside = layout.save(layout.official_tensors(), tmp_path / "outside.bin")
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "pytorch_model.bin").symlink_to(outside)
    refused(folder, geometry, "is a link out of its folder")
    # The Hub's cache is made of links to the repository's own blobs.
    snapshot = tmp_path / "models--a--b" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    outside.rename(tmp_path / "models--a--b" / "blobs" / "123")
    (snapshot / "pytorch_model.bin").symlink_to("../../blobs/123")
    assert len(read_official(find_official(str(snapshot)), geometry, "base").textual) == 5


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 3}}', "[" * 100_000]
)
def test_a_damaged_index(tmp_path: Path, geometry: Geometry, content: str) -> None:
    (tmp_path / "pytorch_model.bin.index.json").write_text(content)
    refused(tmp_path, geometry, "pytorch_model.bin.index.json is damaged")


def test_shards_and_index_must_agree(tmp_path: Path, geometry: Geometry) -> None:
    folder = layout.write_shards(tmp_path / "shards", layout.official_tensors())
    index = folder / "pytorch_model.bin.index.json"
    places = json.loads(index.read_text())["weight_map"]
    write_index(folder, places | {"model.more": "pytorch_model-00001-of-00002.bin"})
    refused(folder, geometry, "lacks model.more, which its pytorch_model.bin.index.json lists")
    write_index(folder, places)
    twice = torch.load(folder / "pytorch_model-00001-of-00002.bin", weights_only=True)
    second = folder / "pytorch_model-00002-of-00002.bin"
    torch.save(twice | torch.load(second, weights_only=True), second)
    refused(folder, geometry, "which another file of the checkpoint holds as well")
    second.unlink()
    refused(folder, geometry, "lacks pytorch_model-00002-of-00002.bin")


def test_a_checkpoint_trained_in_another_way(tmp_path: Path, geometry: Geometry) -> None:
    layout.save(layout.official_tensors(), tmp_path / "pytorch_model.bin")
    usual = {"mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "mm_use_im_start_end": False}
    config = tmp_path / "config.json"
    for said in ({}, usual, usual | {"mm_vision_select_feature": None, "model_type": "llava_finetune"}):
        config.write_text(json.dumps(said))
        read_official(tmp_path, geometry, "base")
    for change in (
        {"mm_vision_select_layer": -1},
        {"mm_vision_select_feature": "cls_patch"},
        {"mm_use_im_start_end": True},
    ):
        config.write_text(json.dumps(usual | change))
        refused(tmp_path, geometry, *(f"{name} {value!r}" for name, value in change.items()), "which m2pt does not do")
    for content in ("{", "[]", "[" * 100_000):
        config.write_text(content)
        refused(tmp_path, geometry, "config.json can't be read")


def test_what_is_no_checkpoint_leads_on(tmp_path: Path, geometry: Geometry) -> None:
    refused(tmp_path, geometry, "holds none of model.safetensors.index.json")
    (tmp_path / "checkpoint-500").mkdir()
    refused(tmp_path, geometry, "give one of its checkpoints", "checkpoint-500")
    (tmp_path / "zero_to_fp32.py").touch()
    refused(tmp_path, geometry, "run zero_to_fp32.py")
    (tmp_path / "adapter_config.json").touch()
    refused(tmp_path, geometry, "is an adapter already", "--adapter")
    refused(tmp_path / "adapter_config.json", geometry, "neither .bin nor .safetensors")
    with pytest.raises(AdapterError) as caught:
        find_official(str(tmp_path / "checkpont-500"))
    assert caught.value.hint == f"did you mean {tmp_path / 'checkpoint-500'}?"
    with pytest.raises(AdapterError, match="can't be read: File name too long"):
        find_official("x" * 5000)
    for name in ("nowhere", "./a/b", "/no/where", f"{tmp_path}/x"):
        with pytest.raises(AdapterError, match="there is no checkpoint"):
            find_official(name)
