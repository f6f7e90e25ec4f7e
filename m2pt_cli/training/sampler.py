"""Length-grouped sampling that depends only on (seed, epoch), so that a resumed run gets the same batches.

`transformers`' length-grouped sampler uses the global random state at the start of an epoch, which a resumed run does
not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

# Samples are shuffled, sorted by length within pools of this many batches, and the batches of each pool are shuffled.
# A pool is large enough for little padding and small enough that batches differ between epochs.
_POOL = 32


class LengthGroupedSampler(Sampler[int]):
    """Yields sample indices so that samples of one optimiser step have similar lengths.

    Args:
        lengths: number of tokens of each sample.
        unit: samples of one optimiser step (batch x accumulation x processes); they stay together, so that all
            processes get samples of similar length in the same step.
        seed: together with the epoch determines the order.
    """

    def __init__(self, lengths: Sequence[int], *, unit: int, seed: int) -> None:
        self.lengths = torch.as_tensor(list(lengths))
        self.unit = unit
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose order the next iteration uses."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        # The factor keeps neighbouring seeds from sharing an epoch's order.
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        order = torch.randperm(len(self), generator=generator)
        for pool in order.split(self.unit * _POOL):
            by_length = pool[torch.sort(self.lengths[pool], descending=True, stable=True).indices]
            batches = by_length.split(self.unit)
            # An incomplete batch must be the last of the epoch: earlier it would shift the bounds of all later batches.
            full = len(pool) // self.unit
            shuffled = torch.randperm(full, generator=generator).tolist()
            for index in [*shuffled, *range(full, len(batches))]:
                yield from batches[index].tolist()
