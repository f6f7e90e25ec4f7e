"""The blind baseline gives every question another question's image."""

from __future__ import annotations

import pytest
from fixtures.stand_ins import item

from m2pt_cli.errors import SettingsError
from m2pt_cli.evaluation.blind_baseline import shuffle_images


def test_every_question_gets_another_image_and_groups_stay() -> None:
    items = [item(n, image=f"scene-{n // 3}.png") for n in range(30)]
    blind = shuffle_images(items, seed=0)
    assert all(a.image.name != b.image.name for a, b in zip(items, blind, strict=True))
    assert [a.question for a in items] == [b.question for b in blind]
    assert sorted(b.image.name for b in blind) == sorted(a.image.name for a in items)
    for start in range(0, 30, 3):
        assert len({b.image.name for b in blind[start : start + 3]}) == 1


def test_the_shuffle_is_decided_by_the_seed() -> None:
    items = [item(n) for n in range(20)]
    names = [[b.image.name for b in shuffle_images(items, seed=seed)] for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]


def test_one_image_can_not_be_shuffled() -> None:
    with pytest.raises(SettingsError, match="at least two images"):
        shuffle_images([item(1, image="same.png"), item(2, image="same.png")], seed=0)
