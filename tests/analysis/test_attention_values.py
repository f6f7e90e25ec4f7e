"""The numbers in a file: read back by name, axis by axis."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from m2pt_cli.analysis.attention_values import write_values

from .made_maps import made_maps, made_run


def test_npz_holds_every_array_with_its_axes(tmp_path: Path) -> None:
    run = made_run(heads=(0, 3))
    file = tmp_path / "map.npz"
    write_values(made_maps(run, made_run(None, textual=0)), file)
    with np.load(file, allow_pickle=False) as found:
        assert found["runs"].tolist() == ["runs/a", "none"]
        assert found["run0.language.answer.axes"].tolist() == ["layer", "head", "answer_token", "key"]
        assert run.language is not None
        np.testing.assert_array_equal(found["run0.language.answer"], run.language.answer)
        assert found["run0.language.head"].tolist() == ["0", "3"]
        shape = found["run0.language.answer"].shape
        assert shape[3] == len(found["run0.language.key"]) == len(found["run0.language.key_group"])
        assert shape[2] == len(found["run0.language.answer_token"])
        for name in found.files:
            if f"{name}.axes" in found.files:
                assert found[name].ndim == len(found[f"{name}.axes"])
    assert [path.name for path in tmp_path.iterdir()] == ["map.npz"]


def test_json_holds_the_same(tmp_path: Path) -> None:
    run = made_run()
    file = tmp_path / "map.json"
    write_values(made_maps(run), file)
    document = json.loads(file.read_text())
    assert document["question"] == "what is it?"
    assert run.vision is not None
    array = document["runs"][0]["arrays"]["vision.from_patches"]
    assert array["axes"] == ["layer", "key"]
    np.testing.assert_allclose(array["values"], run.vision.from_patches, atol=1e-6)
    assert document["runs"][0]["labels"]["vision.key"][:3] == ["v0", "v1", "CLS"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "map.npz"
    file.write_text("the old one")

    def full(target: Path, **_: object) -> None:
        Path(target).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space"):
        write_values(made_maps(), file)
    assert [path.name for path in tmp_path.iterdir()] == ["map.npz"]
    assert file.read_text() == "the old one"
