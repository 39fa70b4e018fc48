"""What a net has to beat: a constant, the mean map, what scale alone can give, and a regression on hand-made features.

Those that have seen the targets they are scored against say so in their names.
"""

import logging
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from src import image
from src.arrays import Array, Doubles, Floats, Pixels
from src.data_loader import (
    Pair,
    PlainPairs,
    Source,
    clipped_log,
    decoding_pool,
    evenly,
    filled_log_depth,
    mean_log_depth,
    names_digest,
)
from src.errors import CheckFailed, UserError
from src.files import StrPath, replacing, writable_folder

MOST_PAIRS = 2000  # of the training pairs, evenly spaced
RIDGE = 1.0
CONSTANT, MEAN_MAP, KERNEL = "constant depth", "mean training map", "kernel regression"
BEST_SCALE, OWN_SCALES = "mean map x best scale", "mean map x own scales"
SEEN = (CONSTANT, BEST_SCALE, OWN_SCALES)

logger = logging.getLogger(__name__)


class Baselines:
    """The baselines of a set of test pairs, and where there is a Train folder beside them those that learn from it.

    Raises CheckFailed when no target has a measured pixel.
    """

    def __init__(self, folder: StrPath, pairs: Sequence[Pair], workers: int) -> None:
        self.mean_map: Floats | None = None
        self.kernel: KernelRegression | None = None
        if root := _with_training_pairs(folder):
            try:
                source = PlainPairs(root)
                found = mean_map(source, workers)
                self.kernel = KernelRegression.of(source, list(_spread(source)), workers)
                self.mean_map = found
            except UserError as error:
                logger.warning("no mean training map: %s", error)
        self.constant, self.shift = _fit_to_targets(pairs, self.mean_map, workers)

    def before(self, rgb: Floats) -> dict[str, Floats]:
        """The baselines that are shown before the nets: RGB (N, 3, 228, 304) in [0, 1] -> dict of name to log depth
        (N, 1, 55, 74)."""
        ones = np.ones((len(rgb), 1, *image.DEPTH_SIZE), np.float32)
        if self.mean_map is None or self.kernel is None:
            return {CONSTANT: ones * self.constant}
        return {CONSTANT: ones * self.constant, MEAN_MAP: ones * self.mean_map,
                BEST_SCALE: ones * (self.mean_map + self.shift), KERNEL: self.kernel(rgb)}

    def after(self, depth_m: Floats) -> dict[str, Floats]:
        """Those that are shown after the nets: target metres (N, 1, 55, 74) -> dict of name to log depth."""
        if self.mean_map is None:
            return {}
        shifts = [_mean_difference(one, self.mean_map) for one in depth_m]
        return {OWN_SCALES: np.stack([self.mean_map + np.float32(shift) for shift in shifts])}


def mean_map(source: Source, workers: int, skip_bad: bool = False) -> Floats:
    """The mean log-depth map (1, 55, 74) of at most MOST_PAIRS training pairs."""
    return mean_log_depth(source.depth_maps(_spread(source), workers, skip_bad))


def _spread(source: Source) -> Sequence[int]:
    return evenly(range(len(source.names)), MOST_PAIRS)


def _with_training_pairs(folder: StrPath) -> Path | None:
    """The NYU folder of these test pairs where it has training pairs, else None."""
    folder = Path(folder)
    root = folder.parent if folder.resolve().name == "Test" and not (folder / "Test").is_dir() else folder
    return root if (root / "Train").is_dir() else None


def _mean_difference(depth_m: Floats, log_depth: Floats | float) -> float:
    """The mean of log target - prediction over the measured pixels; 0 when there are none."""
    measured = depth_m > 0
    return float((clipped_log(depth_m) - log_depth)[measured].mean()) if measured.any() else 0.0


def _fit_to_targets(pairs: Sequence[Pair], mean_map: Floats | None, workers: int) -> tuple[np.float32, np.float32]:
    """The log depth that is the best constant, and the best shift of the mean map, for the targets of `pairs`."""
    logs, shifts = [], []
    with decoding_pool(workers) as pool:
        for depth_m in pool.map(lambda pair: image.network_depth(image.load_test_depth(pair.depth)), pairs):
            if (depth_m > 0).any():
                logs.append(_mean_difference(depth_m, 0.0))
                shifts.append(0.0 if mean_map is None else _mean_difference(depth_m, mean_map))
    if not logs:
        raise CheckFailed("no measured pixel in any target: nothing to score")
    return np.float32(np.mean(logs)), np.float32(np.mean(shifts))


def features(rgb: Pixels) -> Floats:
    """uint8 (228, 304, 3) -> float32 (1884,): histograms of oriented gradients (Dalal and Triggs, 2005) of the 96x128
    picture, its 12x16 colours, and how much detail there is on 6x8 cells."""
    small = cv2.resize(rgb, (128, 96), interpolation=cv2.INTER_AREA)
    colours = cv2.resize(rgb, (16, 12), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    detail = np.abs(cv2.Laplacian(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.CV_32F))
    detail = np.log1p(cv2.resize(detail, (8, 6), interpolation=cv2.INTER_AREA))
    histograms = cv2.HOGDescriptor((128, 96), (32, 32), (16, 16), (16, 16), 9).compute(small)
    return np.concatenate([np.ravel(histograms), colours.ravel(), detail.ravel()])


class KernelRegression:
    """Ridge regression from `features` to log depth with a Gaussian kernel as wide as the median squared distance, on
    the training pairs and their mirror images; a prediction is the mean of the picture's and its mirror image's."""

    def __init__(self, offset: Floats, scale: Floats, rows: Floats, width: float, weights: Floats,
                 mean: Floats) -> None:
        self.offset, self.scale, self.rows, self.width, self.weights, self.mean = (
            offset, scale, rows, width, weights, mean)

    @classmethod
    def of(cls, source: PlainPairs, indices: Sequence[int], workers: int) -> "KernelRegression":
        """Fitted on these samples of a PlainPairs, or taken from the cache of an earlier run on the same files."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "depthnet"
        path = cache / f"kernel-{names_digest([source.data_digest(), *source.names])}.npz"
        names = ("offset", "scale", "rows", "width", "weights", "mean")
        try:
            with np.load(path) as saved:
                return cls(*(saved[name] for name in names))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass  # not there, or of no use
        logger.info("fitting the kernel regression that the nets are compared with, on %d pairs", len(indices))
        fitted = cls._fit(source, indices, workers)
        try:
            writable_folder(cache)
            with replacing(path, "wb") as file:
                np.savez(file, **{name: getattr(fitted, name) for name in names})
        except (OSError, UserError) as error:
            logger.info("not kept for the next time: %s", error)
        return fitted

    @classmethod
    def _fit(cls, source: PlainPairs, indices: Sequence[int], workers: int) -> "KernelRegression":
        found, depth_maps = [], []
        for _, rgb, depth_m in source.samples(indices, workers, skip_bad=False):
            found += [features(rgb), features(np.ascontiguousarray(rgb[:, ::-1]))]
            depth_maps += [depth_m, depth_m[:, ::-1]]
        rows = np.array(found, np.float32)
        offset, scale = rows.mean(0), rows.std(0)
        scale += 0.01 * scale.mean()
        rows = (rows - offset) / scale
        log_depth, mean = filled_log_depth(depth_maps)
        distances = _squared_distances(rows, rows)
        width = max(float(np.median(distances)), 1e-6)
        kernel = np.exp(-distances / width) + RIDGE * np.eye(len(rows))
        weights = np.linalg.solve(kernel, (log_depth - mean).reshape(len(rows), -1)).astype(np.float32)
        return cls(offset, scale, rows, width, weights, mean)

    def __call__(self, rgb: Floats) -> Floats:
        """(N, 3, 228, 304) RGB in [0, 1] -> (N, 1, 55, 74) log depth."""
        pixels = np.rint(rgb.transpose(0, 2, 3, 1) * 255).astype(np.uint8)
        both = [features(np.ascontiguousarray(one)) for one in (*pixels, *pixels[:, :, ::-1])]
        rows = (np.array(both, np.float32) - self.offset) / self.scale
        maps = np.exp(-_squared_distances(rows, self.rows) / self.width) @ self.weights
        maps = maps.reshape(2, len(rgb), 1, *image.DEPTH_SIZE) + self.mean
        return ((maps[0] + maps[1, ..., ::-1]) / 2).astype(np.float32)


def _squared_distances(rows: Array, others: Array) -> Doubles:
    return ((rows**2).sum(1)[:, None] + (others**2).sum(1) - 2 * rows @ others.T).clip(0).astype(np.float64)
