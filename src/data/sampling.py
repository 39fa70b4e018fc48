"""Assigns samples to batches as a function of (seed, epoch, rank)."""

import functools
from dataclasses import dataclass

import numpy as np

from src.base.arrays import Indices
from src.data.listing import DataError

MOST_BAD = 0.01  # largest share of samples that may be replaced (at least one); more means that the data set is broken


@dataclass(frozen=True)
class Schedule:
    """Assigns samples to batches, as a function of the seed, for any rank and step.

    Every epoch uses a new permutation of all samples, cut to whole global batches. Rank r takes every `ranks`-th sample
    from r on. The shards are disjoint and equally long. Together they are the batches of a single process with `ranks`
    times the batch size.

    Args:
        samples: number of samples.
        batch_size: samples per batch on each rank.
        seed: seed of the permutations.
        rank, ranks: this process, and the number of processes.

    Raises DataError if there are fewer samples than one global batch.
    """

    samples: int
    batch_size: int
    seed: int
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        if not self.steps_per_epoch:
            batch = f"a batch of {self.batch_size}" + (f" on each of {self.ranks} devices" if self.ranks > 1 else "")
            raise DataError(f"{self.samples} training pairs do not fill {batch}: use a smaller --batch_size")

    @property
    def steps_per_epoch(self) -> int:
        """Number of whole batches in an epoch. The remaining samples are dropped."""
        return self.samples // (self.batch_size * self.ranks)

    @property
    def most_bad(self) -> int:
        """Number of samples that may be replaced by others: MOST_BAD of all, at least one, less than a shard."""
        return min(max(1, int(MOST_BAD * self.samples)), self.steps_per_epoch * self.batch_size - 1)

    def shard(self, epoch: int) -> Indices:
        """Return this rank's sample indices in epoch `epoch` (from 0), in order."""
        used = self.steps_per_epoch * self.batch_size * self.ranks
        return _permutation(self.seed, epoch, self.samples)[:used][self.rank :: self.ranks]

    def batch(self, step: int) -> tuple[int, Indices]:
        """Return (epoch, this rank's sample indices) of step `step`, counted from 0 over all epochs."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return epoch, self.shard(epoch)[position * self.batch_size : (position + 1) * self.batch_size]


def counter_rng(seed: int, epoch: int, sample: int | None = None) -> np.random.Generator:
    """Return a random generator that depends only on its arguments. `sample` None: the generator of the epoch."""
    key = np.array([seed, 0 if sample is None else sample + 1], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, epoch], np.uint64)))


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, samples: int) -> Indices:
    return counter_rng(seed, epoch).permutation(samples)
