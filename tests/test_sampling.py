"""The schedule of samples over steps, epochs and devices, and the random numbers."""

import numpy as np
import pytest

from src.data import sampling
from src.data.listing import DataError
from src.data.sampling import Schedule


def test_shards_are_disjoint_equal_and_complete_over_three_epochs():
    samples, ranks, batch = 50, 4, 3
    shards = [Schedule(samples, batch, seed=7, rank=rank, ranks=ranks) for rank in range(ranks)]
    steps = shards[0].steps_per_epoch
    assert steps == 4
    assert all(len(shard.shard(epoch)) == steps * batch for shard in shards for epoch in range(3))
    orders = []
    for epoch in range(3):
        seen = [index for shard in shards for step in range(steps) for index in shard.batch(epoch * steps + step)[1]]
        assert len(seen) == len(set(seen)) == steps * batch * ranks
        orders.append(tuple(seen))
    assert len(set(orders)) == 3
    assert len(set(sum(orders, ()))) == samples  # what one epoch drops, another sees


def test_two_ranks_together_see_the_batch_of_one_with_twice_the_size():
    single = Schedule(40, 8, seed=3)
    double = [Schedule(40, 4, seed=3, rank=rank, ranks=2) for rank in range(2)]
    for step in range(12):
        together = np.concatenate([shard.batch(step)[1] for shard in double])
        assert sorted(together) == sorted(single.batch(step)[1])


def test_the_order_of_an_epoch_is_drawn_once():
    """Also while the end of one is loaded beside the beginning of the next."""
    sampling._permutation.cache_clear()
    schedule = Schedule(50, 5, seed=1)
    for step in (7, 8, 9, 10, 9, 11):
        schedule.batch(step)
    assert sampling._permutation.cache_info().misses == 2


def test_a_dataset_smaller_than_a_batch_says_so():
    with pytest.raises(DataError, match=r"8 training pairs do not fill a batch of 9: use a smaller --batch_size"):
        Schedule(8, 9, seed=0)
    assert Schedule(8, 8, seed=0).steps_per_epoch == 1
    with pytest.raises(DataError, match=r"do not fill a batch of 3 on each of 2 devices: use"):
        Schedule(5, 3, seed=0, ranks=2)
