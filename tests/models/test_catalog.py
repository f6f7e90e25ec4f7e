"""Names of bases: aliases, folders, Hub ids and misspellings."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from m2pt_cli.errors import UnavailableError
from m2pt_cli.families.measured import FamilyGeometry, measured_geometry
from m2pt_cli.models import catalog
from m2pt_cli.models.catalog import NANO_DEFAULTS, PAPER_DEFAULTS, base_names, entry_of, find_base, resolve_base_name
from m2pt_cli.settings import METHODS, TrainSettings


def test_the_catalogue_knows_its_bases_without_torch() -> None:
    totals = {name: entry_of(name).geometry.total_parameters for name in base_names() if name != "nano"}
    assert totals == {
        "llava-1.5-7b": 7_063_427_072,
        "llava-1.5-13b": 13_351_494_656,
        "llava-v1-7b": 7_045_793_792,
        "smolvlm-256m": 256_484_928,
        "smolvlm-500m": 507_482_304,
    }


@pytest.mark.parametrize("name", ["smolvlm-256m", "smolvlm-500m"])
def test_known_sizes_are_those_of_the_model_that_transformers_builds(name: str) -> None:
    known = entry_of(name).geometry
    assert isinstance(known, FamilyGeometry)
    assert known.group_sizes == dataclasses.replace(known, sizes=None).group_sizes
    assert measured_geometry(known.config) == known


def test_a_hub_id_of_a_known_base_is_that_base() -> None:
    assert find_base("llava-hf/llava-1.5-7b-hf") is find_base("llava-1.5-7b")
    assert find_base("somebody/llava") is None


def test_default_base(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_base_name(None, None) == "llava-1.5-7b"
    monkeypatch.setenv("M2PT_BASE", "nano")
    assert resolve_base_name(None, None) == "nano"
    assert resolve_base_name(None, "of/adapter") == "of/adapter"
    assert resolve_base_name("said", "of/adapter") == "said"


@pytest.mark.parametrize("method", METHODS)
def test_defaults_are_settings_that_hold(method: str) -> None:
    for defaults in (PAPER_DEFAULTS, NANO_DEFAULTS):
        values = defaults.for_method(method)
        assert set(values) <= {f.name for f in fields(TrainSettings)}
        settings = TrainSettings(data=("demo",), method=method).resolve(values)
        assert settings.learning_rate and settings.template and settings.image_fit and settings.batch_size
        assert (settings.epochs is None) != (settings.max_steps is None)


def test_defaults_of_the_paper() -> None:
    values = PAPER_DEFAULTS.for_method("m2pt")
    expected = {"visual_prompts": 20, "textual_prompts": 10, "learning_rate": 7e-4, "epochs": 3, "weight_decay": 0.0}
    expected |= {"batch_size": 16, "accumulation": 2, "warmup": 0.03, "max_length": 1024, "template": "vicuna_v1"}
    assert expected.items() <= values.items()
    assert "visual_lr" not in values
    # VPT and PTUM of the paper's table
    assert PAPER_DEFAULTS.for_method("visual")["visual_prompts"] == 10
    assert PAPER_DEFAULTS.for_method("textual")["textual_prompts"] == 30


def test_lora_has_one_learning_rate_of_its_own() -> None:
    values = NANO_DEFAULTS.for_method("lora")
    assert values["learning_rate"] == NANO_DEFAULTS.method_learning_rates["lora"]
    assert not {"visual_lr", "textual_lr", "interaction_lr"} & set(values)


def test_a_folder_is_a_base(bases: Callable[..., Path]) -> None:
    entry = entry_of(str(bases()))
    assert entry.folder == bases() and entry.name == str(bases()) and entry.repo_id is None
    assert entry.geometry.text.num_key_value_heads == 2
    assert entry.defaults is PAPER_DEFAULTS


@pytest.fixture
def nano_is(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Lets another folder stand for the embedded base's."""

    def put(folder: Path) -> None:
        nano = dataclasses.replace(catalog._ENTRIES[0], folder=folder)
        monkeypatch.setattr(catalog, "NANO_FOLDER", folder)
        monkeypatch.setattr(catalog, "_ENTRIES", (nano, *catalog._ENTRIES[1:]))

    return put


def test_a_folder_of_known_geometry_trains_as_the_known_base(
    bases: Callable[..., Path], copied: Path, nano_is: Callable[[Path], None]
) -> None:
    # A fully fine-tuned copy of nano keeps nano's recipe.
    nano_is(bases())
    assert entry_of(str(copied)).defaults is NANO_DEFAULTS
    assert entry_of(str(bases(projector="linear"))).defaults is PAPER_DEFAULTS


def test_an_installation_without_nano(tmp_path: Path, copied: Path, nano_is: Callable[[Path], None]) -> None:
    nano_is(tmp_path / "nowhere")
    with pytest.raises(UnavailableError, match="nano are missing from this installation") as caught:
        _ = entry_of("nano").geometry
    assert "pip install" in (caught.value.hint or "")
    assert entry_of(str(copied)).defaults is PAPER_DEFAULTS


def test_llava_next_uses_its_own_template(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava_next"}))
    defaults = entry_of(str(tmp_path)).defaults
    assert (defaults.template, defaults.image_fit) == ("base", "base")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nanno", "Did you mean 'nano'"),
        ("llava-1.5-7B", "Did you mean 'llava-1.5-7b'"),
        ("./nowhere", "not a folder"),
        ("/no/such/folder", "not a folder"),
        ("a/b/c", "not a folder"),
        ("https://somewhere/x", "not a folder"),
        ("", "not a known base"),
    ],
)
def test_an_unknown_name(name: str, said: str) -> None:
    with pytest.raises(UnavailableError, match=said.replace("'", ".")) as caught:
        entry_of(name)
    assert caught.value.hint and "nano" in caught.value.hint


def test_faulty_folders(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"no config\.json"):
        entry_of(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UnavailableError, match="holds an adapter") as caught:
        entry_of(str(tmp_path))
    assert caught.value.hint == f"give it with --adapter {tmp_path}"
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UnavailableError, match="can't be read"):
        entry_of(str(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UnavailableError, match="mapping"):
        entry_of(str(tmp_path))
    with pytest.raises(UnavailableError, match="is a file"):
        entry_of(str(tmp_path / "adapter_config.json"))


def test_a_config_file_stands_for_its_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    assert entry_of(str(tmp_path / "config.json")) == entry_of(str(tmp_path))


def test_the_catalogue_needs_no_torch() -> None:
    code = (
        "import sys; import m2pt_cli.models.adapters, m2pt_cli.models.hub, m2pt_cli.models.count;"
        "from m2pt_cli.models.catalog import entry_of; entry_of('llava-1.5-13b').geometry;"
        "print(sorted({'torch', 'transformers', 'peft', 'numpy', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
