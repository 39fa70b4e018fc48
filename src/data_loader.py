"""Makes training and test batches of NYU Depth V2.

Every random choice is a function of (seed, epoch, sample), drawn from a counter-based generator (Philox). Therefore no
generator state has to be saved, and the results depend neither on the number of workers nor on when a run was resumed.
"""

import ctypes
import logging
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from src.base.arrays import Array, Floats, Pixels
from src.base.files import StrPath
from src.data import image
from src.data.augmentation import AUGMENTATIONS, augment_as_paper
from src.data.listing import DataError, Pair, list_test
from src.data.plain import Load, Source, decoding_pool, load_test_pair
from src.data.sampling import Schedule, counter_rng

_SAMPLES_PER_CALL = 4  # a call of the thread pool costs a third of an augmentation
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>

logger = logging.getLogger(__name__)


def readable_test_pairs(folder: StrPath, workers: int) -> list[Pair]:
    """List the test pairs and read every file once, to find broken files before training. Raises DataError and
    image.ImageError."""
    pairs = list_test(folder)
    with decoding_pool(workers) as pool:
        for _ in pool.map(load_test_pair, pairs):
            pass
    return pairs


def test_batches(
    pairs: Sequence[Pair], batch_size: int, workers: int
) -> Iterator[tuple[Sequence[Pair], Floats, list[Floats]]]:
    """Yield batches of test pairs; the last may be smaller. Raises image.ImageError.

    Args:
        pairs: the pairs to read, in order.
        batch_size: pairs per batch.
        workers: decoding threads.

    Yields:
        (N pairs, RGB float32 (N, 3, 228, 304) in [0, 1], list of N full depth maps (H, W) in metres).
    """
    chunks = [pairs[start : start + batch_size] for start in range(0, len(pairs), batch_size)]
    with decoding_pool(workers) as pool:
        for chunk, loaded in _ahead(pool, ((chunk, [(load_test_pair, pair) for pair in chunk]) for chunk in chunks)):
            yield chunk, np.stack([rgb for rgb, _ in loaded]), [depth_m for _, depth_m in loaded]


def _ahead(
    pool: ThreadPoolExecutor, batches: Iterable[tuple[Any, list[Any]]], depth: int = 2
) -> Iterator[tuple[Any, list[Any]]]:
    """Run the calls of each (batch, [(function, *arguments), ...]) in the pool, `depth` batches ahead of the consumer.
    Yields (batch, [result, ...])."""
    queue: deque[tuple[Any, list[Future[Any]]]] = deque()
    try:
        for batch, calls in batches:
            queue.append((batch, [pool.submit(*call) for call in calls]))
            if len(queue) > depth:
                yield _finished(*queue.popleft())
        while queue:
            yield _finished(*queue.popleft())
    finally:
        for future in (future for _, futures in queue for future in futures):
            future.cancel()


def _finished(batch: Any, futures: list[Future[Any]]) -> tuple[Any, list[Any]]:
    return batch, [future.result() for future in futures]


class TrainingData:
    """Augmented batches of training pairs, prepared ahead of time by a thread pool.

    Args:
        source: PlainPairs or packed.PackedPairs.
        schedule: assigns the samples to batches.
        workers: threads. OpenCV and Pillow release the interpreter lock while they work.
        dropout_units, dropout_rate: size of the dropout mask (N, units) of 0 and 1 that is the third array of a batch,
            and the share of zeros. 0 units: no mask.
        augmentation: a key of AUGMENTATIONS.
        skip_bad: replace an unreadable sample by the next readable sample of the shard, instead of raising.
    """

    def __init__(
        self,
        source: Source,
        schedule: Schedule,
        workers: int = 2,
        dropout_units: int = 0,
        dropout_rate: float = 0.0,
        augmentation: str = "reference",
        skip_bad: bool = False,
    ) -> None:
        self.augment = AUGMENTATIONS[augmentation]
        self.source, self.schedule, self.workers = source, schedule, workers
        self.dropout_units, self.dropout_rate = dropout_units, dropout_rate
        self.skip_bad, self._lock = skip_bad, threading.Lock()
        self.bad: set[int] = set()

    def batches(self, first_step: int, last_step: int) -> Iterator[list[Array]]:
        """Yield the arrays of steps first_step..last_step - 1: [rgb, depth_m] or [rgb, depth_m, kept_units].

        RGB is uint8 (N, 3, 228, 304), a quarter of the bytes of float32; depth is float32 metres (N, 1, 55, 74);
        kept_units is float32 (N, dropout_units) of 0 and 1.

        Raises image.ImageError naming a file that cannot be used, or DataError if too many cannot.
        """
        keep_freed_memory()
        with decoding_pool(self.workers) as pool:
            for arrays, _ in _ahead(pool, self._work(first_step, last_step)):
                yield arrays

    def files(self, step: int) -> list[object]:
        """Return the names of the samples of a step, for messages."""
        return [self.source.file(index) for index in self.schedule.batch(step)[1]]

    def _work(self, first_step: int, last_step: int) -> Iterator[tuple[list[Array], list[Any]]]:
        for epoch, indices, load in self.source.read(
            self.schedule, first_step, last_step, self.workers, whole=self.augment is augment_as_paper
        ):
            arrays: list[Array] = [
                np.empty((len(indices), 3, *image.RGB_SIZE), np.uint8),
                np.empty((len(indices), 1, *image.DEPTH_SIZE), np.float32),
            ]
            if self.dropout_units:
                arrays.append(np.empty((len(indices), self.dropout_units), np.float32))
            parts = [slice(start, start + _SAMPLES_PER_CALL) for start in range(0, len(indices), _SAMPLES_PER_CALL)]
            yield (
                arrays,
                [(self._fill, [array[part] for array in arrays], epoch, indices[part], load) for part in parts],
            )

    def _fill(self, arrays: Sequence[Array], epoch: int, indices: Iterable[int], load: Load) -> None:
        for index, rgb_out, depth_out, *kept_out in zip(indices, *arrays, strict=True):
            index, rgb, depth = self._load(load, epoch, int(index))
            rng = counter_rng(self.schedule.seed, epoch, index)
            self.augment(rgb, depth, rng, rgb_out, depth_out)
            for kept in kept_out:
                kept[:] = rng.random(self.dropout_units) >= self.dropout_rate

    def _load(self, load: Load, epoch: int, index: int) -> tuple[int, Pixels, Array]:
        """Return (index, RGB, depth) of a sample; with `skip_bad`, of the next readable sample of the epoch's shard."""
        while True:
            try:
                return index, *load(index)
            except image.ImageError as error:
                if not self.skip_bad:
                    raise
                self._note_bad(index, error)
            shard = self.schedule.shard(epoch)
            index = int(shard[(np.flatnonzero(shard == index)[0] + 1) % len(shard)])

    def _note_bad(self, index: int, error: image.ImageError) -> None:
        with self._lock:
            if index in self.bad:
                return
            self.bad.add(index)
            logger.warning("bad sample, replaced by another: %s", error)
            if len(self.bad) > self.schedule.most_bad:
                raise DataError(
                    f"{len(self.bad)} of {self.schedule.samples} samples are bad, at most "
                    f"{self.schedule.most_bad} may be; the last: {error}"
                )


def keep_freed_memory() -> None:
    """Make glibc reuse the memory of freed arrays. By default it returns blocks over 128 KiB to the system, and paging
    them in again costs about as much as decoding a picture."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent in other C libraries
    if mallopt:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 256 << 20)
