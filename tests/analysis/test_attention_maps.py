"""Numbers computed from attention maps: shares, overlays, attention on prompts, and the JSON document."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fixtures.made_maps import GRID, LAYERS, made_maps, made_run

from m2pt_cli.analysis.attention_maps import write_values


def test_shares_of_the_groups_sum_to_one() -> None:
    run = made_run()
    assert run.language is not None
    assert run.vision is not None
    for part in (run.language, run.vision):
        np.testing.assert_allclose(sum(part.shares().values()), 1, rtol=1e-5)
        assert sum(part.uniform_shares().values()) == pytest.approx(1, abs=1e-5)


def test_an_overlay_is_the_mean_of_what_was_chosen() -> None:
    language = made_run(official=True, answer=4, heads=(2, 0)).language
    assert language is not None
    first = language.tokens.labels.index("0,0")
    patches = language.answer[..., first : first + GRID**2].reshape(LAYERS, 2, 4, GRID, GRID)
    np.testing.assert_allclose(language.overlay([], 0, []), patches[:, 0].mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(language.overlay([1, 3], 1, [-1]), patches[[1, 3], 1, -1].mean(0), rtol=1e-6)


def test_attention_of_the_answer_on_prompts() -> None:
    language = made_run(official=True).language
    assert language is not None
    values, labels = language.answer_on_prompts([2])
    assert labels == ["t0", "t1", "t2", "v1"]
    np.testing.assert_allclose(values[:, :3], language.answer[2, 0, :, :3], rtol=1e-6)


def test_uniform_attention_on_a_patch() -> None:
    """The last query sees every key, the one before it one fewer."""
    language = made_run(answer=2).language
    assert language is not None
    keys = len(language.tokens)
    assert language.overlay_uniform() == pytest.approx((1 / keys + 1 / (keys - 1)) / 2)


def test_the_document() -> None:
    document = json.loads(json.dumps(made_maps(made_run(), made_run(None, textual=0, visual=0)).to_dict()))
    assert list(document) == ["image", "question", "base", "heads", "vision_heads", "runs", "output", "values"]
    adapted, bare = document["runs"]
    assert list(adapted) == list(bare) == ["adapter", "label", "answer", "tokens", "language", "vision"]
    prompts = adapted["language"]["prompts"]
    assert prompts["layers"] == adapted["language"]["groups"]["textual_prompts"]["layers"]
    assert len(prompts["layers"]) == LAYERS
    assert 0 < prompts["uniform"] < 1
    assert bare["adapter"] is bare["language"]["prompts"] is bare["vision"]["prompts"] is None


def test_projected_prompts_count_as_prompts() -> None:
    part = made_run(official=True).to_dict()["language"]
    both = [part["groups"][name]["mean"] for name in ("textual_prompts", "visual_prompts")]
    assert part["prompts"]["mean"] == pytest.approx(sum(both), abs=2e-6)


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
