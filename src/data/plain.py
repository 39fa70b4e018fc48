"""Reads training and test pairs from the files of a NYU folder."""

import copy
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeAlias

import cv2
import numpy as np

from src.base.arrays import Array, Floats, Indices, Pixels
from src.base.files import StrPath
from src.data import image
from src.data.listing import Pair, list_train, names_digest
from src.data.sampling import Schedule

KEPT_BYTES = 1_000_000_000  # of decoded depth kept in memory: all of NYU's targets, of 16 KB each

Sample: TypeAlias = tuple[Pixels, Array]  # RGB and depth, in one of the two forms of `PlainPairs.load`
Load: TypeAlias = Callable[[int], Sample]


def decoding_pool(workers: int | None = None) -> ThreadPoolExecutor:
    """Return a pool of decoding threads. Turns OpenCV's own threads off: each thread would start one per processor."""
    cv2.setNumThreads(1)
    return ThreadPoolExecutor(workers)


def load_test_pair(pair: Pair) -> tuple[Floats, Floats]:
    """Read a test pair: RGB float32 (3, 228, 304) in [0, 1] and the full depth (H, W) in metres. Raises
    image.ImageError."""
    rgb, depth_m = image.load_rgb(pair.rgb), image.load_test_depth(pair.depth)
    image.check_pair(rgb, depth_m, pair.rgb, pair.depth)
    return image.network_rgb(rgb), depth_m


class PlainPairs:
    """The training pairs of a NYU folder as files, decoded, cropped and resized on demand.

    Resized depth maps are kept in memory, up to KEPT_BYTES. This saves almost half of the work in every epoch but the
    first.

    Raises DataError if the folder cannot be used.
    """

    form = "plain"

    def __init__(self, folder: StrPath) -> None:
        self.pairs = list_train(folder)
        self.names = [pair.name for pair in self.pairs]
        self._kept: dict[tuple[int, bool], Array] = {}
        self._kept_bytes = 0

    def part(self, indices: Sequence[int]) -> "PlainPairs":
        """Return a source of only these samples."""
        part = copy.copy(self)
        part.pairs, part._kept = [self.pairs[index] for index in indices], {}
        part.names = [pair.name for pair in part.pairs]
        return part

    def file(self, index: int) -> object:
        """Return the name of sample `index` for messages."""
        return self.pairs[index].rgb

    def data_digest(self) -> str:
        """Return a hexadecimal digest of the sizes and modification times of all files."""

        def facts(path: Path) -> str:
            status = os.stat(path)
            return f"{status.st_size} {status.st_mtime_ns}"

        return names_digest([f"{facts(pair.rgb)} {facts(pair.depth)}" for pair in self.pairs])

    def load(self, index: int, whole: bool = False) -> Sample:
        """Read a sample.

        Args:
            index: number of the sample.
            whole: return the whole picture instead of the crop that the nets see.

        Returns:
            uint8 RGB (228, 304, 3) and metres (55, 74); if `whole`, uint8 RGB (240, 320, 3) and uint8 depth pixels
            (240, 320).

        Raises image.ImageError.
        """
        pair, kept = self.pairs[index], self._kept.get((index, whole))
        if kept is not None:
            rgb = image.load_rgb(pair.rgb)
        else:
            rgb, pixels = decode_train_pair(pair)
            kept = image.half_depth(pixels) if whole else train_target(pixels)
            if self._kept_bytes < KEPT_BYTES:
                self._kept[index, whole] = kept
                self._kept_bytes += kept.nbytes
        return (image.half_pixels if whole else image.network_pixels)(rgb), kept

    def read(
        self, schedule: Schedule, first_step: int, last_step: int, workers: int, whole: bool
    ) -> Iterator[tuple[int, Indices, Load]]:
        """Yield (epoch, sample indices, function that loads a sample by index) for steps first_step..last_step - 1."""
        for step in range(first_step, last_step):
            yield *schedule.batch(step), functools.partial(self.load, whole=whole)

    def depth_maps(self, indices: Iterable[int], workers: int, skip_bad: bool) -> Iterator[Floats]:
        """Yield the depth (55, 74) in metres of these samples. Raises image.ImageError for an unreadable file; if
        `skip_bad`, yields an unmeasured map instead."""

        def depth_map(index: int) -> Floats:
            try:
                return train_target(image.load_train_depth_pixels(self.pairs[index].depth))
            except image.ImageError:
                if not skip_bad:
                    raise
                return np.zeros(image.DEPTH_SIZE, np.float32)

        with decoding_pool(workers) as pool:
            yield from pool.map(depth_map, indices)

    def samples(self, indices: Iterable[int], workers: int, skip_bad: bool) -> Iterator[tuple[int, Pixels, Floats]]:
        """Yield (index, RGB, depth in metres) of these samples, in the shapes of `load`. Raises image.ImageError for an
        unreadable file; if `skip_bad`, leaves it out."""

        def sample(index: int) -> tuple[int, Pixels, Floats] | None:
            try:
                return index, *self.load(index)
            except image.ImageError:
                if not skip_bad:
                    raise
                return None

        with decoding_pool(workers) as pool:
            yield from filter(None, pool.map(sample, indices))


class Source(Protocol):
    """Training pairs by index: interface of PlainPairs and packed.PackedPairs, documented in PlainPairs."""

    @property
    def form(self) -> str: ...
    @property
    def names(self) -> list[str]: ...

    def part(self, indices: Sequence[int]) -> "Source": ...
    def file(self, index: int) -> object: ...
    def data_digest(self) -> str: ...
    def read(
        self, schedule: Schedule, first_step: int, last_step: int, workers: int, whole: bool
    ) -> Iterator[tuple[int, Indices, Load]]: ...
    def depth_maps(self, indices: Sequence[int], workers: int, skip_bad: bool) -> Iterator[Floats]: ...
    def samples(self, indices: Sequence[int], workers: int, skip_bad: bool) -> Iterator[tuple[int, Pixels, Floats]]: ...


def decode_train_pair(pair: Pair) -> tuple[Pixels, Pixels]:
    """Read a training pair: uint8 RGB (H, W, 3) and uint8 depth pixels (H, W). Raises image.ImageError."""
    rgb, pixels = image.load_rgb(pair.rgb), image.load_train_depth_pixels(pair.depth)
    image.check_pair(rgb, pixels, pair.rgb, pair.depth)
    return rgb, pixels


def train_target(pixels: Pixels) -> Floats:
    """Convert training depth pixels, uint8 (H, W), to the target: float32 metres (55, 74)."""
    return image.network_depth(pixels)[0] * image.TRAIN_DEPTH_SCALE
