"""Token groups, and their shares under uniform attention."""

from __future__ import annotations

import numpy as np
import pytest

from m2pt_cli.analysis.tokens import language_tokens, uniform_causal, vision_tokens

IMAGE = 9


def tokens_of(image: int, **options: int) -> tuple[list[str], list[str]]:
    prompt = [1, 2, *[IMAGE] * image, 3, 4]
    found = language_tokens(
        prompt, [5, 6], lambda t: f"w{t}", num_prompts=2, image_token_id=IMAGE, **({"grid": 2} | options)
    )
    assert len(found) == 2 + len(prompt) + 1
    return list(found.groups), list(found.labels)


def test_patches_alone() -> None:
    groups, labels = tokens_of(4)
    assert groups == ["textual_prompts"] * 2 + ["first_token", "system"] + ["image"] * 4 + ["question"] * 2 + ["answer"]
    assert labels == ["t0", "t1", "w1", "w2", "0,0", "0,1", "1,0", "1,1", "w3", "w4", "w5"]


def test_official_tokens_are_prompts_and_class_token_in_front() -> None:
    """k_v = 3: the first prompt is dropped, two and the class token stay."""
    groups, labels = tokens_of(4 + 3)
    assert groups[4:11] == ["visual_prompts"] * 2 + ["class_token"] + ["image"] * 4
    assert labels[4:8] == ["v1", "v2", "CLS", "0,0"]


def test_tiles_follow_the_overview() -> None:
    groups, labels = tokens_of(7, is_tiled=1)
    assert groups[4:11] == ["image"] * 7
    assert labels[7:10] == ["1,1", "tile 0", "tile 1"]


def test_the_overview_may_come_last_and_marks_between_tiles_belong_to_the_image() -> None:
    prompt = [1, 2, IMAGE, IMAGE, 7, *[IMAGE] * 4, 3]
    found = language_tokens(
        prompt, [5], lambda t: f"w{t}", num_prompts=0, image_token_id=IMAGE, grid=2, is_tiled=True, overview="last"
    )
    assert found.groups == ("first_token", "system", *["image"] * 7, "question")
    assert found.labels == ("w1", "w2", "tile 0", "tile 1", "tile w7", "0,0", "0,1", "1,0", "1,1", "w3")


def test_a_tower_with_and_without_class_token() -> None:
    assert vision_tokens(num_prompts=1, has_class_token=True, grid=2).labels == (
        "v0",
        "CLS",
        "0,0",
        "0,1",
        "1,0",
        "1,1",
    )
    assert vision_tokens(num_prompts=0, has_class_token=False, grid=1).groups == ("image",)


def test_groups_sum_to_the_whole() -> None:
    found = vision_tokens(num_prompts=2, has_class_token=True, grid=3)
    weights = np.random.default_rng(0).random((4, len(found))).astype(np.float32)
    np.testing.assert_allclose(sum(found.sums(weights).values()), weights.sum(-1), rtol=1e-6)


@pytest.mark.parametrize(("prompts", "count"), [(0, 5), (3, 1), (4, 7)])
def test_uniform_attention_is_the_mean_of_even_causal_rows(prompts: int, count: int) -> None:
    rows = np.tril(np.ones((count, prompts + count)), prompts)
    rows /= rows.sum(-1, keepdims=True)
    np.testing.assert_allclose(uniform_causal(prompts, count), rows.mean(0), rtol=1e-6)
