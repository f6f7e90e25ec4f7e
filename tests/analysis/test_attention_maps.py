"""Numbers read off attention maps: shares, overlays, attention on prompts, and the JSON document."""

from __future__ import annotations

import json

import numpy as np
import pytest

from .made_maps import GRID, LAYERS, made_maps, made_run


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
    assert list(adapted) == list(bare) == ["adapter", "answer", "tokens", "language", "vision"]
    prompts = adapted["language"]["prompts"]
    assert prompts["layers"] == adapted["language"]["groups"]["textual_prompts"]["layers"]
    assert len(prompts["layers"]) == LAYERS
    assert 0 < prompts["uniform"] < 1
    assert bare["adapter"] is bare["language"]["prompts"] is bare["vision"]["prompts"] is None


def test_projected_prompts_count_as_prompts() -> None:
    part = made_run(official=True).to_dict()["language"]
    both = [part["groups"][name]["mean"] for name in ("textual_prompts", "visual_prompts")]
    assert part["prompts"]["mean"] == pytest.approx(sum(both), abs=2e-6)
