"""Length-grouped order of the training samples, a function of (seed, epoch) alone.

`transformers`' own length-grouped sampler takes its order from the global random state at the start of an epoch, which
a resumed run does not have; this one gives a resumed run the same batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

# Samples are shuffled, sorted by length within pools of this many batches, and the batches of a pool are shuffled:
# large enough for little padding, small enough for batches that differ from epoch to epoch.
_POOL = 32


class LengthGroupedSampler(Sampler[int]):
    """Indices in batches of similar length.

    Args:
        lengths: tokens of each sample.
        unit: samples of one optimiser step (batch x accumulation x processes); these stay together, so that every
            process gets rows of like length in the same step.
        seed: with the epoch, the only source of the order.
    """

    def __init__(self, lengths: Sequence[int], *, unit: int, seed: int) -> None:
        self.lengths = torch.as_tensor(list(lengths))
        self.unit = unit
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of ``epoch`` for the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        # One generator per (seed, epoch), far apart: neighbouring seeds share no epoch.
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        order = torch.randperm(len(self), generator=generator)
        for pool in order.split(self.unit * _POOL):
            by_length = pool[torch.sort(self.lengths[pool], descending=True, stable=True).indices]
            batches = by_length.split(self.unit)
            # A short batch can only be the last of an epoch: elsewhere it would shift the bounds of those after it.
            full = len(pool) // self.unit
            shuffled = torch.randperm(full, generator=generator).tolist()
            for index in [*shuffled, *range(full, len(batches))]:
                yield from batches[index].tolist()
