"""Batch planning: which questions share a prefix, and what fits in a batch."""

from __future__ import annotations

from m2pt_cli.generation.prefix_sharing import MAX_QUESTIONS_PER_ROW, plan_batches, plan_groups

IMAGE = 99


def test_questions_about_one_image_share_its_row() -> None:
    prompts = [[1, IMAGE, IMAGE, 5, 6, 7], [1, IMAGE, IMAGE, 5, 8], [1, IMAGE, IMAGE, 4]]
    (row,) = plan_groups(prompts, ["a", "a", "a"], image_token_id=IMAGE)
    assert row.prefix == (1, IMAGE, IMAGE)
    assert row.tails == ((5, 6, 7), (5, 8), (4,))
    assert row.members == (0, 1, 2)


def test_every_question_keeps_a_token_of_its_own() -> None:
    (row,) = plan_groups([[1, IMAGE, 5, 6], [1, IMAGE, 5, 6]], ["a", "a"], image_token_id=IMAGE)
    assert row.tails == ((6,), (6,))
    (row,) = plan_groups([[1, IMAGE, 5], [1, IMAGE, 5, 6]], ["a", "a"], image_token_id=IMAGE)
    assert row.tails == ((5,), (5, 6))


def test_other_images_are_other_rows_in_order_of_appearance() -> None:
    prompts = [[1, IMAGE, 5], [1, IMAGE, 6], [1, IMAGE, 7]]
    rows = plan_groups(prompts, ["b", "a", "b"], image_token_id=IMAGE)
    assert [row.members for row in rows] == [(0, 2), (1,)]
    assert rows[1].tails == ((),)
    assert rows[1].prefix == (1, IMAGE, 6)


def test_an_image_behind_the_question_is_never_shared() -> None:
    rows = plan_groups([[1, 5, IMAGE, 3], [1, 6, IMAGE, 3]], ["a", "a"], image_token_id=IMAGE)
    assert [row.members for row in rows] == [(0,), (1,)]
    assert [row.prefix for row in rows] == [(1, 5, IMAGE, 3), (1, 6, IMAGE, 3)]


def test_a_row_is_bounded_and_every_question_is_in_exactly_one() -> None:
    prompts = [[1, IMAGE, 10 + i] for i in range(MAX_QUESTIONS_PER_ROW + 5)]
    rows = plan_groups(prompts, ["a"] * len(prompts), image_token_id=IMAGE)
    assert [len(row.members) for row in rows] == [MAX_QUESTIONS_PER_ROW, 5]
    assert sorted(member for row in rows for member in row.members) == list(range(len(prompts)))
    for row in rows:
        for member, tail in zip(row.members, row.tails, strict=True):
            assert list(row.prefix + tail) == prompts[member]


def test_batches_hold_one_kind_and_fit_the_budget() -> None:
    prompts = [[1, IMAGE] + [5] * n + [n] for n in (3, 4, 5, 6, 30)] + [[1, IMAGE, 7], [1, IMAGE, 8]]
    rows = plan_groups(prompts, ["a", "b", "c", "d", "e", "f", "f"], image_token_id=IMAGE)
    batches = list(plan_batches(rows, batch_tokens=16))
    assert [row for batch in batches for row in batch] == rows
    for batch in batches:
        assert len({row.is_single for row in batch}) == 1
        assert len(batch) == 1 or max(row.num_tokens for row in batch) * len(batch) <= 16
    assert max(map(len, batches)) > 1


def test_a_row_is_halved_down_to_single_questions() -> None:
    prompts = [[1, IMAGE, 5, 6], [1, IMAGE, 7], [1, IMAGE, 8, 9]]
    (row,) = plan_groups(prompts, ["a"] * 3, image_token_id=IMAGE)
    first, rest = row.halves()
    assert (first.prefix, first.tails, first.members) == ((1, IMAGE, 5, 6), ((),), (0,))
    assert (rest.prefix, rest.tails, rest.members) == ((1, IMAGE), ((7,), (8, 9)), (1, 2))
    assert [part.prefix for part in rest.halves()] == [(1, IMAGE, 7), (1, IMAGE, 8, 9)]
    assert first.halves() == []
