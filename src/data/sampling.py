"""Which samples make which batch: a pure function of (seed, epoch, rank)."""

import functools
from dataclasses import dataclass

import numpy as np

from src.base.arrays import Indices
from src.data.listing import DataError

MOST_BAD = 0.01  # of the samples, but one always; with more, the data and not a file is broken


@dataclass(frozen=True)
class Schedule:
    """Which samples make which batch: a pure function of the seed, for any rank, from any step.

    Every epoch is a new permutation of all samples, cut to whole global batches; rank r of `ranks` takes
    every `ranks`-th sample, so the shards are disjoint and of one length, and together they are the batches
    that a single process would see with `ranks` times the batch size.
    """

    samples: int
    batch_size: int
    seed: int
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        if not self.steps_per_epoch:
            whole = f"a batch of {self.batch_size}" + (f" on each of {self.ranks} devices" if self.ranks > 1 else "")
            raise DataError(f"{self.samples} training pairs do not fill {whole}: use a smaller --batch_size")

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch; the remainder is dropped."""
        return self.samples // (self.batch_size * self.ranks)

    @property
    def most_bad(self) -> int:
        """How many samples may be replaced by others: one, or MOST_BAD of them, as long as a shard has others."""
        return min(max(1, int(MOST_BAD * self.samples)), self.steps_per_epoch * self.batch_size - 1)

    def shard(self, epoch: int) -> Indices:
        """This rank's sample indices in `epoch` (from 0), in order."""
        used = self.steps_per_epoch * self.batch_size * self.ranks
        return _permutation(self.seed, epoch, self.samples)[:used][self.rank::self.ranks]

    def batch(self, step: int) -> tuple[int, Indices]:
        """(epoch, sample indices) of step `step` (from 0, over all epochs) on this rank."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return epoch, self.shard(epoch)[position * self.batch_size:(position + 1) * self.batch_size]


def counter_rng(seed: int, epoch: int, sample: int | None = None) -> np.random.Generator:
    """A generator that depends on nothing but its arguments; `sample` None is the epoch's own."""
    key = np.array([seed, 0 if sample is None else sample + 1], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, epoch], np.uint64)))


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, samples: int) -> Indices:
    return counter_rng(seed, epoch).permutation(samples)
