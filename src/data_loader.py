"""NYU Depth V2: list the pairs, and feed them to training and evaluation.

Every random choice is a function of (seed, epoch, sample), drawn from a counter-based generator (Philox), so
there is no generator state to save, and neither the number of workers nor the point of a resume changes anything.
"""

import copy
import ctypes
import functools
import hashlib
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import cv2
import numpy as np

from src import folders, image
from src.arrays import Array, Floats, Indices, Pixels
from src.errors import UserError
from src.files import StrPath
from src.metrics import DEPTH_RANGE_M

BRIGHTNESS = (0.8, 1.0)
SHARPNESS = (0.8, 1.2)

# The paper's augmentation (section 3.4).
PAPER_SCALE, PAPER_ROTATION_DEGREES, PAPER_COLOUR = (1.0, 1.5), 5.0, (0.8, 1.2)

KEPT_BYTES = 1_000_000_000  # of decoded depth: all of NYU's targets, of 16 KB each
MOST_BAD = 0.01  # of the samples, but one always; with more, the data and not a file is broken

_SAMPLES_A_CALL = 4  # a call of the thread pool costs as much as a third of an augmentation
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>

LAYOUT = "expected NYU/Train/<scene>_out/<n>.jpg + <n>.png and NYU/Test/<id>_colors.png + <id>_depth.png"


logger = logging.getLogger(__name__)

T = TypeVar("T")
Sample: TypeAlias = tuple[Pixels, Array]  # RGB and depth, in one of the two forms of `PlainPairs.load`
Load: TypeAlias = Callable[[int], Sample]


class DataError(UserError):
    """A data folder that cannot be used. The message names the folder or the files."""


class TwoFiles(DataError):
    """Two files that would be one sample. The message names them."""


class Pair(NamedTuple):
    """One picture and its depth map; `name` is the id of a test pair, `<scene>/<n>` of a training pair."""

    name: str
    rgb: Path
    depth: Path


def _natural_key(name: str) -> list[tuple[int, int, str]]:
    """Numbers in numeric order: 2 before 10."""
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in name.split("/")]


def _split_folder(folder: StrPath, split: str) -> Path:
    """`folder`/`split`, or `folder` itself when it is that split's folder. Raises DataError saying what was found."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {LAYOUT}")
    if (folder / split).is_dir():
        return folder / split
    if folder.resolve().name == split:
        return folder
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
    raise DataError(f"{folder}: no {split} folder in it (found: {found}); {LAYOUT}")


def missing_partners(rgb_by_name: Mapping[str, Path], depth_by_name: Mapping[str, Path]) -> list[str]:
    """A sentence for each file whose partner is missing."""
    def missing(name: str) -> str:
        return f"{rgb_by_name[name]} has no depth map" if name in rgb_by_name \
            else f"{depth_by_name[name]} has no RGB image"

    return [missing(name) for name in sorted(set(rgb_by_name) ^ set(depth_by_name), key=_natural_key)]


def matched(rgb_by_name: Mapping[str, Path], depth_by_name: Mapping[str, Path]) -> list[Pair]:
    """The Pairs of the names that have both, in natural order."""
    return [Pair(name, rgb_by_name[name], depth_by_name[name])
            for name in sorted(set(rgb_by_name) & set(depth_by_name), key=_natural_key)]


class Files(NamedTuple):
    """The files of Train or Test, paired or not, by the names of their samples; and what the search did not take."""

    rgb: dict[str, Path]
    depth: dict[str, Path]
    found: folders.Found


def train_files(folder: StrPath) -> Files:
    """The Files of `folder`/Train. Raises DataError when there is no such folder."""
    root = _split_folder(folder, "Train")
    found = folders.search(root, ("*", "*"), (*image.JPEG_ENDINGS, ".png"))
    if outside := folders.search(root, ("*",)).files:
        found.left_out["in no scene's folder"] = outside

    def name_of(path: Path) -> str:
        return f"{path.parent.name}/{path.stem}"

    return Files(_by_name(found, image.JPEG_ENDINGS, name_of), _by_name(found, (".png",), name_of), found)


def test_files(folder: StrPath) -> Files:
    """The Files of `folder`/Test. Raises DataError when there is no such folder."""
    found = folders.search(_split_folder(folder, "Test"), ("*",), ("_colors.png", "_depth.png"))

    def name_of(path: Path) -> str:
        return path.name[:path.name.rindex("_")]

    return Files(_by_name(found, ("_colors.png",), name_of), _by_name(found, ("_depth.png",), name_of), found)


def _by_name(found: folders.Found, endings: tuple[str, ...], name_of: Callable[[Path], str]) -> dict[str, Path]:
    by_name: dict[str, Path] = {}
    for path in (path for path in found.files if path.name.lower().endswith(endings)):
        earlier = by_name.setdefault(name_of(path), path)
        if earlier != path:
            raise TwoFiles(f"{path} and {earlier}: two files of one name: expected one of them")
    return by_name


def list_train(folder: StrPath) -> list[Pair]:
    """The pairs of `folder`/Train by scene and number, in the same order on every machine. Raises DataError."""
    return _all_pairs(folder, train_files(folder))


def list_test(folder: StrPath) -> list[Pair]:
    """The pairs of `folder`/Test by id. Raises DataError."""
    return _all_pairs(folder, test_files(folder))


def _all_pairs(folder: StrPath, files: Files) -> list[Pair]:
    """The Pairs, all of them: a folder that cannot be read, and a file without its partner, are DataErrors. What else
    is not taken is logged."""
    if files.found.unread:
        raise DataError("; ".join(files.found.unread[:3]) + _more(files.found.unread))
    for why, paths in files.found.left_out.items():
        logger.warning("left out, %s: %s", why, folders.named(paths))
    unpaired = missing_partners(files.rgb, files.depth)
    if unpaired:
        raise DataError("; ".join(unpaired[:3]) + _more(unpaired))
    if not files.rgb:
        raise DataError(f"{folder}: no image pairs; {LAYOUT}")
    return matched(files.rgb, files.depth)


def _more(sentences: Sequence[str]) -> str:
    return f" (and {len(sentences) - 3} more)" if len(sentences) > 3 else ""


def readable_test_pairs(folder: StrPath, workers: int) -> list[Pair]:
    """`list_test` with every file read once: what is broken is known now and not after an hour. Raises DataError and
    image.ImageError."""
    pairs = list_test(folder)
    with decoding_pool(workers) as pool:
        for _ in pool.map(load_test_pair, pairs):
            pass
    return pairs


def decoding_pool(workers: int | None = None) -> ThreadPoolExecutor:
    """Threads that read pictures. OpenCV then starts none: each of these would have as many as there are processors."""
    cv2.setNumThreads(1)
    return ThreadPoolExecutor(workers)


def names_digest(names: Iterable[str]) -> str:
    """Hexadecimal text that stands for these samples in this order."""
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def evenly(sequence: Sequence[T], most: int) -> list[T]:
    """`most` items of a list or range, evenly spaced, or all where there are fewer."""
    count = min(most, len(sequence))
    return [sequence[place * len(sequence) // count] for place in range(count)]


def load_test_pair(pair: Pair) -> tuple[Floats, Floats]:
    """(3, 228, 304) RGB in [0, 1] and the full (H, W) depth in metres. Raises image.ImageError."""
    rgb, depth_m = image.load_rgb(pair.rgb), image.load_test_depth(pair.depth)
    image.check_pair(rgb, depth_m, pair.rgb, pair.depth)
    return image.network_rgb(rgb), depth_m


def test_batches(pairs: Sequence[Pair], batch_size: int,
                 workers: int) -> Iterator[tuple[Sequence[Pair], Floats, list[Floats]]]:
    """Yield (pairs, rgb (N, 3, 228, 304), list of N full depth maps (H, W) in metres); the last may be smaller."""
    chunks = [pairs[start:start + batch_size] for start in range(0, len(pairs), batch_size)]
    with decoding_pool(workers) as pool:
        for chunk, loaded in _ahead(pool, ((chunk, [(load_test_pair, pair) for pair in chunk]) for chunk in chunks)):
            yield chunk, np.stack([rgb for rgb, _ in loaded]), [depth_m for _, depth_m in loaded]


def _ahead(pool: ThreadPoolExecutor, batches: Iterable[tuple[Any, list[Any]]],
           depth: int = 2) -> Iterator[tuple[Any, list[Any]]]:
    """Run the calls of each (batch, list of (function, *arguments)) in the pool, `depth` batches ahead of the
    consumer. Yields (batch, list of results)."""
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


class TrainingData:
    """Augmented batches of training pairs, made by a thread pool some batches ahead.

    Args:
        source: PlainPairs, or packed.PackedPairs: the same samples, decoded beforehand.
        schedule: which samples make which batch.
        workers: threads. OpenCV and Pillow let go of the interpreter lock while they work.
        dropout_units, dropout_rate: what the net wants as a third array, (N, units) of 0 and 1; 0 is none.
        augmentation: a key of AUGMENTATIONS.
        skip_bad: replace a sample that cannot be read by the next of the same shard that can, instead of stopping.
    """

    def __init__(self, source: Source, schedule: Schedule, workers: int = 2, dropout_units: int = 0,
                 dropout_rate: float = 0.0, augmentation: str = "reference", skip_bad: bool = False) -> None:
        self.augment = AUGMENTATIONS[augmentation]
        self.source, self.schedule, self.workers = source, schedule, workers
        self.dropout_units, self.dropout_rate = dropout_units, dropout_rate
        self.skip_bad, self._lock = skip_bad, threading.Lock()
        self.bad: set[int] = set()

    def batches(self, first_step: int, last_step: int) -> Iterator[list[Array]]:
        """Yield the arrays of steps first_step..last_step - 1: [rgb, depth_m] or [rgb, depth_m, kept_units].

        RGB is uint8 (N, 3, 228, 304), a quarter of what float32 would move to the device; depth is (N, 1, 55, 74).
        Raises image.ImageError naming the file that cannot be used, or DataError when too many cannot.
        """
        keep_freed_memory()
        with decoding_pool(self.workers) as pool:
            for arrays, _ in _ahead(pool, self._work(first_step, last_step)):
                yield arrays

    def files(self, step: int) -> list[object]:
        """What the samples of one step are called."""
        return [self.source.file(index) for index in self.schedule.batch(step)[1]]

    def _work(self, first_step: int, last_step: int) -> Iterator[tuple[list[Array], list[Any]]]:
        for epoch, indices, load in self.source.read(self.schedule, first_step, last_step, self.workers,
                                                     whole=self.augment is augment_as_paper):
            arrays: list[Array] = [np.empty((len(indices), 3, *image.RGB_SIZE), np.uint8),
                      np.empty((len(indices), 1, *image.DEPTH_SIZE), np.float32)]
            if self.dropout_units:
                arrays.append(np.empty((len(indices), self.dropout_units), np.float32))
            parts = [slice(start, start + _SAMPLES_A_CALL) for start in range(0, len(indices), _SAMPLES_A_CALL)]
            yield arrays, [(self._fill, [array[part] for array in arrays], epoch, indices[part], load)
                           for part in parts]

    def _fill(self, arrays: Sequence[Array], epoch: int, indices: Iterable[int], load: Load) -> None:
        for index, rgb_out, depth_out, *kept_out in zip(indices, *arrays, strict=True):
            index, rgb, depth = self._load(load, epoch, int(index))
            rng = counter_rng(self.schedule.seed, epoch, index)
            self.augment(rgb, depth, rng, rgb_out, depth_out)
            for kept in kept_out:
                kept[:] = rng.random(self.dropout_units) >= self.dropout_rate

    def _load(self, load: Load, epoch: int, index: int) -> tuple[int, Pixels, Array]:
        """(index, RGB, depth) of the sample, or with `skip_bad` of the next of this epoch's shard that can be read:
        a function of the epoch and the sample like everything else."""
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
                raise DataError(f"{len(self.bad)} of {self.schedule.samples} samples are bad, {self.schedule.most_bad} "
                                f"may be; the last: {error}")


def keep_freed_memory() -> None:
    """Have glibc keep freed arrays for the next ones. By default everything over 128 KiB goes back to the system and
    is paged in anew, which for pictures costs about as much as decoding them."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent in other C libraries
    if mallopt:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 256 << 20)


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


def augment(rgb: Pixels, depth_m: Floats, rng: np.random.Generator, rgb_out: Pixels, depth_out: Floats) -> None:
    """Flip both, change the brightness and the sharpness of RGB, and write them into the batch's arrays.

    uint8 (228, 304, 3) and metres (55, 74) -> uint8 (3, 228, 304) and float32 (1, 55, 74).

    Sharpness is that of Pillow's ImageEnhance: c * rgb + (1 - c) * smooth, where smooth weighs the pixel with 5/13 and
    its eight neighbours with 1/13 each, which is 4/13 of the pixel and 9/13 of the 3x3 mean.
    """
    flip = rng.random() < 0.5
    brightness, sharpness = rng.uniform(*BRIGHTNESS), rng.uniform(*SHARPNESS)
    mean = cv2.blur(rgb, (3, 3), borderType=cv2.BORDER_REPLICATE)
    rgb = cv2.addWeighted(rgb, brightness * (sharpness + (1 - sharpness) * 4 / 13),
                          mean, brightness * (1 - sharpness) * 9 / 13, 0)
    if flip:
        rgb, depth_m = cv2.flip(rgb, 1), depth_m[:, ::-1]
    cv2.split(rgb, list(rgb_out))
    depth_out[0] = depth_m


def augment_as_paper(rgb: Pixels, pixels: Pixels, rng: np.random.Generator, rgb_out: Pixels, depth_out: Floats) -> None:
    """The paper's augmentation (section 3.4): the scale grows by 1 to 1.5 and the depth is divided by it, rotation
    within 5 degrees, a translation as far as the picture reaches, each colour times 0.8 to 1.2, a flip.

    The whole picture at half size, uint8 (240, 320, 3), and its depth pixels (240, 320) -> uint8 (3, 228, 304) and
    float32 metres (1, 55, 74), bilinear over the measured pixels. What turns in from outside is the picture's mirror
    image, without depth.
    """
    flip, scale = rng.random() < 0.5, rng.uniform(*PAPER_SCALE)
    angle = np.deg2rad(rng.uniform(-PAPER_ROTATION_DEGREES, PAPER_ROTATION_DEGREES))
    place, colour = rng.uniform(-1, 1, 2), rng.uniform(*PAPER_COLOUR, 3)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    full, seen = np.array(image.HALF_SIZE[::-1]), np.array(image.RGB_SIZE[::-1])  # as (x, y)
    room = np.maximum(full - np.abs(turn) @ seen, 0)
    centre = full / 2 + place * room / 2
    turn = turn @ np.diag([-1 if flip else 1, 1])

    def cut(array: Array, size: tuple[int, int], border: int) -> Array:
        """The window on a grid of `size` (height, width) cells, half-pixel centres."""
        cells = np.array(size[::-1])
        matrix = turn @ np.diag(seen / cells)
        offset = centre - 0.5 - matrix @ (cells - 1) / 2
        return cv2.warpAffine(array, np.column_stack([matrix, offset]), size[::-1],
                              flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=border)

    rgb = cut(rgb, image.RGB_SIZE, cv2.BORDER_REFLECT_101)
    cv2.split(cv2.multiply(rgb, (*colour, 0)), list(rgb_out))
    depth = np.dstack([pixels, pixels > 0]).astype(np.float32)
    total, weight = np.moveaxis(cut(depth, image.DEPTH_SIZE, cv2.BORDER_CONSTANT), 2, 0)
    depth_out[0] = np.where(weight >= 0.5, total / np.maximum(weight, 0.5), 0) * (image.TRAIN_DEPTH_SCALE / scale)


Augmentation: TypeAlias = Callable[[Pixels, Array, np.random.Generator, Pixels, Floats], None]
AUGMENTATIONS: dict[str, Augmentation] = {"reference": augment, "paper": augment_as_paper}


def clipped_log(depth_m: Array) -> Array:
    """The natural logarithm of metres, which are clipped as the metrics clip them."""
    return np.log(np.clip(depth_m, *DEPTH_RANGE_M))


def mean_log_depth(depth_maps: Iterable[Floats]) -> Floats:
    """The mean log depth of each cell over an iterable of depth maps (55, 74) in metres: (1, 55, 74).

    It is the constant prediction to beat. Unmeasured pixels do not count.
    """
    total = np.zeros((2, *image.DEPTH_SIZE))
    for depth_m in depth_maps:
        measured = depth_m > 0
        total += clipped_log(depth_m) * measured, measured
    return (total[0] / np.maximum(total[1], 1))[None].astype(np.float32)


def filled_log_depth(depth_maps: Sequence[Floats]) -> tuple[Floats, Floats]:
    """The log depth (N, 55, 74) of a list of depth maps in metres, for a regression: where nothing was measured stands
    the mean (55, 74) of the others, which is returned beside it."""
    mean = mean_log_depth(depth_maps)[0]
    return np.array([np.where(depth_m > 0, clipped_log(depth_m), mean) for depth_m in depth_maps]), mean
