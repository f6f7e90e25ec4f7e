from __future__ import annotations

import random

import torch

from m2pt_cli.training.sampler import LengthGroupedSampler


def order(lengths: list[int], *, seed: int = 0, epoch: int = 0, unit: int = 4) -> list[int]:
    sampler = LengthGroupedSampler(lengths, unit=unit, seed=seed)
    sampler.set_epoch(epoch)
    return list(sampler)


RANDOM = random.Random(1)
LENGTHS = [RANDOM.randint(5, 400) for _ in range(531)]


def test_every_sample_once() -> None:
    assert sorted(order(LENGTHS)) == list(range(531))
    assert len(LengthGroupedSampler(LENGTHS, unit=4, seed=0)) == 531


def test_order_is_a_function_of_seed_and_epoch_alone() -> None:
    torch.manual_seed(1)
    first = order(LENGTHS, seed=3, epoch=2)
    torch.manual_seed(2)
    assert order(LENGTHS, seed=3, epoch=2) == first
    assert order(LENGTHS, seed=3, epoch=1) != first
    assert order(LENGTHS, seed=4, epoch=2) != first


def test_batches_hold_samples_of_similar_length() -> None:
    def padding(indices: list[int]) -> int:
        batches = [[LENGTHS[i] for i in indices[at : at + 4]] for at in range(0, len(indices), 4)]
        return sum(max(batch) * len(batch) - sum(batch) for batch in batches)

    shuffled = list(range(531))
    random.Random(0).shuffle(shuffled)
    assert padding(order(LENGTHS)) < 0.1 * padding(shuffled)


def test_batches_are_not_sorted_among_themselves() -> None:
    longest = [max(LENGTHS[i] for i in order(LENGTHS)[at : at + 4]) for at in range(0, 128, 4)]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)
