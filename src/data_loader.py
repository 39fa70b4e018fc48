"""NYU Depth V2: list the pairs, and feed them to training and evaluation.

Every random choice is a function of (seed, epoch, sample), drawn from a counter-based generator (Philox), so
there is no generator state to save, and neither the number of workers nor the point of a resume changes anything.
"""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from src import image
from src.errors import UserError
from src.metrics import DEPTH_RANGE_M

BRIGHTNESS = (0.8, 1.0)
SHARPNESS = (0.8, 1.2)

# Pillow's SMOOTH filter, the zero point of the usual "sharpness" enhancement.
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13

LAYOUT = "expected NYU/Train/<scene>_out/<n>.jpg + <n>.png and NYU/Test/<id>_colors.png + <id>_depth.png"


class DataError(UserError):
    """A data folder that cannot be used. The message names the folder or the files."""


class Pair(NamedTuple):
    """One picture and its depth map; `name` is the id of a test pair, `<scene>/<n>` of a training pair."""

    name: str
    rgb: Path
    depth: Path


def _natural_key(name):
    """Numbers in numeric order: 2 before 10."""
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in name.split("/")]


def _split_folder(folder, split):
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


def _match(folder, rgb_by_name, depth_by_name):
    unpaired = sorted(set(rgb_by_name) ^ set(depth_by_name), key=_natural_key)
    if unpaired:
        def missing(name):
            return f"{rgb_by_name[name]} has no depth map" if name in rgb_by_name \
                else f"{depth_by_name[name]} has no RGB image"
        more = f" (and {len(unpaired) - 3} more)" if len(unpaired) > 3 else ""
        raise DataError("; ".join(missing(name) for name in unpaired[:3]) + more)
    if not rgb_by_name:
        raise DataError(f"{folder}: no image pairs; {LAYOUT}")
    return [Pair(name, rgb_by_name[name], depth_by_name[name]) for name in sorted(rgb_by_name, key=_natural_key)]


def list_train(folder):
    """The pairs of `folder`/Train by scene and number, in the same order on every machine. Raises DataError."""
    folder = _split_folder(folder, "Train")
    files = [path for path in folder.glob("*/*") if not path.name.startswith(".")]

    def by_name(suffixes):
        return {f"{path.parent.name}/{path.stem}": path for path in files if path.suffix.lower() in suffixes}

    return _match(folder, by_name((".jpg", ".jpeg")), by_name((".png",)))


def list_test(folder):
    """The pairs of `folder`/Test by id. Raises DataError."""
    folder = _split_folder(folder, "Test")

    def by_name(ending):
        return {path.name.removesuffix(ending): path for path in folder.glob(f"*{ending}")
                if not path.name.startswith(".")}

    return _match(folder, by_name("_colors.png"), by_name("_depth.png"))


def load_test_pair(pair):
    """(3, 228, 304) RGB in [0, 1] and the full (H, W) depth in metres. Raises image.ImageError."""
    rgb, depth_m = image.load_rgb(pair.rgb), image.load_test_depth(pair.depth)
    image.check_pair(rgb, depth_m, pair.rgb, pair.depth)
    return image.network_rgb(rgb), depth_m


def test_batches(pairs, batch_size, workers=2):
    """Yield (pairs, rgb (N, 3, 228, 304), list of N full depth maps (H, W) in metres); the last may be smaller."""
    chunks = [pairs[start:start + batch_size] for start in range(0, len(pairs), batch_size)]
    calls = [[(load_test_pair, pair) for pair in chunk] for chunk in chunks]
    with ThreadPoolExecutor(workers) as pool:
        for chunk, loaded in zip(chunks, _ahead(pool, calls), strict=True):
            yield chunk, np.stack([rgb for rgb, _ in loaded]), [depth_m for _, depth_m in loaded]


def _ahead(pool, batches, depth=2):
    """Run each batch of (function, *arguments) in the pool, `depth` batches ahead of the consumer."""
    queue = deque()
    try:
        for batch in batches:
            queue.append([pool.submit(*call) for call in batch])
            if len(queue) > depth:
                yield [future.result() for future in queue.popleft()]
        while queue:
            yield [future.result() for future in queue.popleft()]
    finally:
        for future in (future for batch in queue for future in batch):
            future.cancel()


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

    def __post_init__(self):
        if not self.steps_per_epoch:
            whole = f"a batch of {self.batch_size}" + (f" on each of {self.ranks} devices" if self.ranks > 1 else "")
            raise DataError(f"{self.samples} training pairs do not fill {whole}: use a smaller --batch_size")

    @property
    def steps_per_epoch(self):
        """Whole batches in an epoch; the remainder is dropped."""
        return self.samples // (self.batch_size * self.ranks)

    def order(self, epoch):
        """The permutation of all samples in `epoch` (from 0)."""
        return counter_rng(self.seed, epoch).permutation(self.samples)

    def batch(self, step):
        """(epoch, sample indices) of step `step` (from 0, over all epochs) on this rank."""
        epoch, position = divmod(step, self.steps_per_epoch)
        width = self.batch_size * self.ranks
        return epoch, self.order(epoch)[position * width:(position + 1) * width][self.rank::self.ranks]


def counter_rng(seed, epoch, sample=None):
    """A generator that depends on nothing but its arguments; `sample` None is the epoch's own."""
    key = np.array([seed, 0 if sample is None else sample + 1], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, epoch], np.uint64)))


class TrainingData:
    """Augmented batches of training pairs, decoded by a thread pool some batches ahead.

    Args:
        pairs: from `list_train`.
        schedule: which samples make which batch.
        dropout_units, dropout_rate: what the net wants as a third array, (N, units) of 0 and 1; 0 is none.
        workers: decoding threads. OpenCV and Pillow let go of the interpreter lock while they work.
    """

    def __init__(self, pairs, schedule, workers=2, dropout_units=0, dropout_rate=0.0):
        self.pairs, self.schedule, self.workers = pairs, schedule, workers
        self.dropout_units, self.dropout_rate = dropout_units, dropout_rate

    def batches(self, first_step, last_step):
        """Yield the arrays of steps first_step..last_step - 1: [rgb, depth_m] or [rgb, depth_m, kept_units].

        Raises image.ImageError naming the file that cannot be used.
        """
        with ThreadPoolExecutor(self.workers) as pool:
            for samples in _ahead(pool, map(self._calls, range(first_step, last_step))):
                yield [np.stack(arrays) for arrays in zip(*samples, strict=True)]

    def files(self, step):
        """The RGB files of one step's batch."""
        return [self.pairs[index].rgb for index in self.schedule.batch(step)[1]]

    def _calls(self, step):
        epoch, indices = self.schedule.batch(step)
        return [(self._sample, epoch, int(index)) for index in indices]

    def _sample(self, epoch, index):
        rng = counter_rng(self.schedule.seed, epoch, index)
        rgb, depth_m = augment(*load_train_pair(self.pairs[index]), rng)
        if not self.dropout_units:
            return rgb, depth_m
        return rgb, depth_m, (rng.random(self.dropout_units) >= self.dropout_rate).astype(np.float32)


def load_train_pair(pair):
    """Decoded, cropped and resized: uint8 (228, 304, 3) and float32 metres (55, 74). Raises image.ImageError."""
    rgb, depth_m = image.load_rgb(pair.rgb), image.load_train_depth(pair.depth)
    image.check_pair(rgb, depth_m, pair.rgb, pair.depth)
    return image.resize(image.crop(rgb), image.RGB_SIZE), image.network_depth(depth_m)[0]


def augment(rgb, depth_m, rng):
    """Flip both, change the sharpness and the brightness of RGB, and hand over what the nets take.

    uint8 (228, 304, 3) and metres (55, 74) -> float32 (3, 228, 304) in [0, 1] and (1, 55, 74).
    """
    flip = rng.random() < 0.5
    brightness, sharpness = np.float32(rng.uniform(*BRIGHTNESS)), rng.uniform(*SHARPNESS)
    smooth = cv2.filter2D(rgb, -1, _SMOOTH, borderType=cv2.BORDER_REPLICATE)
    rgb = cv2.addWeighted(rgb, sharpness, smooth, 1 - sharpness, 0)
    if flip:
        rgb, depth_m = cv2.flip(rgb, 1), cv2.flip(depth_m, 1)
    return np.multiply(rgb.transpose(2, 0, 1), brightness / np.float32(255), order="C"), depth_m[None]


def mean_log_depth(pairs, workers=2):
    """The constant prediction to beat: the mean log depth of each cell over `pairs`, (1, 55, 74)."""
    total = np.zeros((2, *image.DEPTH_SIZE))

    def log_depth(pair):
        depth_m = image.network_depth(image.load_train_depth(pair.depth))[0]
        return np.log(np.clip(depth_m, *DEPTH_RANGE_M)) * (depth_m > 0), depth_m > 0

    with ThreadPoolExecutor(workers) as pool:
        for values in pool.map(log_depth, pairs):
            total += values
    return (total[0] / np.maximum(total[1], 1))[None].astype(np.float32)


