"""Training and test pairs read from the files of a NYU folder."""

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

KEPT_BYTES = 1_000_000_000  # of decoded depth: all of NYU's targets, of 16 KB each


Sample: TypeAlias = tuple[Pixels, Array]  # RGB and depth, in one of the two forms of `PlainPairs.load`


Load: TypeAlias = Callable[[int], Sample]


def decoding_pool(workers: int | None = None) -> ThreadPoolExecutor:
    """Threads that read pictures. OpenCV then starts none: each of these would have as many as there are processors."""
    cv2.setNumThreads(1)
    return ThreadPoolExecutor(workers)


def load_test_pair(pair: Pair) -> tuple[Floats, Floats]:
    """(3, 228, 304) RGB in [0, 1] and the full (H, W) depth in metres. Raises image.ImageError."""
    rgb, depth_m = image.load_rgb(pair.rgb), image.load_test_depth(pair.depth)
    image.check_pair(rgb, depth_m, pair.rgb, pair.depth)
    return image.network_rgb(rgb), depth_m


class PlainPairs:
    """The training pairs of a NYU folder as files: decoded, cropped and resized whenever they are asked for.

    A depth map is decoded once: what becomes of it is kept, up to KEPT_BYTES of them. That is almost half of the work
    in every epoch but the first.

    Raises DataError when the folder cannot be used.
    """

    form = "plain"

    def __init__(self, folder: StrPath) -> None:
        self.pairs = list_train(folder)
        self.names = [pair.name for pair in self.pairs]
        self._kept: dict[tuple[int, bool], Array] = {}
        self._kept_bytes = 0

    def part(self, indices: Sequence[int]) -> "PlainPairs":
        """Some of the samples, as a source of their own."""
        part = copy.copy(self)
        part.pairs, part._kept = [self.pairs[index] for index in indices], {}
        part.names = [pair.name for pair in part.pairs]
        return part

    def file(self, index: int) -> object:
        """What to call sample `index` in a message."""
        return self.pairs[index].rgb

    def data_digest(self) -> str:
        """Hexadecimal text that changes with the size or the time of any file."""
        def facts(path: Path) -> str:
            status = os.stat(path)
            return f"{status.st_size} {status.st_mtime_ns}"

        return names_digest([f"{facts(pair.rgb)} {facts(pair.depth)}" for pair in self.pairs])

    def load(self, index: int, whole: bool = False) -> Sample:
        """One sample: what the nets see, uint8 RGB (228, 304, 3) and metres (55, 74); or the `whole` picture at half
        size, uint8 RGB (240, 320, 3) and depth pixels (240, 320). Raises image.ImageError."""
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

    def read(self, schedule: Schedule, first_step: int, last_step: int, workers: int,
             whole: bool) -> Iterator[tuple[int, Indices, Load]]:
        """Yield (epoch, sample indices, function that loads one of them) of each step."""
        for step in range(first_step, last_step):
            yield *schedule.batch(step), functools.partial(self.load, whole=whole)

    def depth_maps(self, indices: Iterable[int], workers: int, skip_bad: bool) -> Iterator[Floats]:
        """Yield the depth (55, 74) in metres of some samples; one that cannot be read raises image.ImageError, or with
        `skip_bad` is all unmeasured."""
        def depth_map(index: int) -> Floats:
            try:
                return train_target(image.load_train_depth_pixels(self.pairs[index].depth))
            except image.ImageError:
                if not skip_bad:
                    raise
                return np.zeros(image.DEPTH_SIZE, np.float32)

        with decoding_pool(workers) as pool:
            yield from pool.map(depth_map, indices)

    def samples(self, indices: Iterable[int], workers: int,
                skip_bad: bool) -> Iterator[tuple[int, Pixels, Floats]]:
        """Yield (index, RGB, depth in metres) of some samples, as `load` has them; one that cannot be read raises
        image.ImageError, or with `skip_bad` is left out."""
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
    """Training pairs by index: PlainPairs, packed.PackedPairs."""

    @property
    def form(self) -> str: ...
    @property
    def names(self) -> list[str]: ...

    def part(self, indices: Sequence[int]) -> "Source": ...
    def file(self, index: int) -> object: ...
    def data_digest(self) -> str: ...
    def read(self, schedule: Schedule, first_step: int, last_step: int, workers: int,
             whole: bool) -> Iterator[tuple[int, Indices, Load]]: ...
    def depth_maps(self, indices: Sequence[int], workers: int, skip_bad: bool) -> Iterator[Floats]: ...
    def samples(self, indices: Sequence[int], workers: int,
                skip_bad: bool) -> Iterator[tuple[int, Pixels, Floats]]: ...


def decode_train_pair(pair: Pair) -> tuple[Pixels, Pixels]:
    """uint8 RGB (H, W, 3) and depth pixels (H, W) of a training pair. Raises image.ImageError."""
    rgb, pixels = image.load_rgb(pair.rgb), image.load_train_depth_pixels(pair.depth)
    image.check_pair(rgb, pixels, pair.rgb, pair.depth)
    return rgb, pixels


def load_train_pair(pair: Pair) -> tuple[Pixels, Floats]:
    """Decoded, cropped and resized: uint8 (228, 304, 3) and float32 metres (55, 74). Raises image.ImageError."""
    rgb, pixels = decode_train_pair(pair)
    return image.network_pixels(rgb), train_target(pixels)


def train_target(pixels: Pixels) -> Floats:
    """uint8 (H, W) -> metres (55, 74). The unit is changed last, on the small map: the resize is linear."""
    return image.network_depth(pixels)[0] * image.TRAIN_DEPTH_SCALE
