"""Baselines: a constant depth, the mean log-depth map of the training pairs, and that map rescaled."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from src.base.arrays import Array, Floats
from src.base.errors import CheckFailed
from src.base.files import StrPath
from src.data import image
from src.data.listing import Pair, evenly
from src.data.plain import PlainPairs, Source, decoding_pool
from src.metrics import DEPTH_RANGE_M

MOST_PAIRS = 2000  # largest number of training pairs whose mean is taken
CONSTANT, MEAN_MAP = "constant depth", "mean training map"
BEST_SCALE, OWN_SCALES = "mean map x best scale", "mean map x own scales"
SEEN = (CONSTANT, BEST_SCALE, OWN_SCALES)  # fitted to the targets that they are scored against


class Baselines:
    """The baselines of a set of test pairs. Without a Train folder beside Test only the constant depth.

    Args:
        folder: the NYU folder, or its Test folder.
        pairs: the test pairs of that folder.
        workers: decoding threads.

    Raises:
        CheckFailed: no target has a measured pixel.
        UserError: a training pair cannot be read.
    """

    def __init__(self, folder: StrPath, pairs: Sequence[Pair], workers: int) -> None:
        root = _with_training_pairs(folder)
        self.mean_map = mean_map(PlainPairs(root), workers) if root else None
        self.constant, self.shift = _fit_to_targets(pairs, self.mean_map, workers)

    def before(self, rgb: Floats) -> dict[str, Floats]:
        """Return the baselines listed before the nets: RGB (N, 3, 228, 304) -> name to log depth (N, 1, 55, 74)."""
        ones = np.ones((len(rgb), 1, *image.DEPTH_SIZE), np.float32)
        if self.mean_map is None:
            return {CONSTANT: ones * self.constant}
        return {
            CONSTANT: ones * self.constant,
            MEAN_MAP: ones * self.mean_map,
            BEST_SCALE: ones * (self.mean_map + self.shift),
        }

    def after(self, depth_m: Floats) -> dict[str, Floats]:
        """Return the baselines listed after the nets: target metres (N, 1, 55, 74) -> name to log depth, same shape."""
        if self.mean_map is None:
            return {}
        shifts = [_mean_difference(target_m, self.mean_map) for target_m in depth_m]
        return {OWN_SCALES: np.stack([self.mean_map + np.float32(shift) for shift in shifts])}


def mean_map(source: Source, workers: int, skip_bad: bool = False) -> Floats:
    """Return the mean log-depth map of at most MOST_PAIRS training pairs, evenly spaced.

    Args:
        source: the training pairs.
        workers: decoding threads.
        skip_bad: leave out pairs that cannot be read, instead of raising UserError.

    Returns:
        float32 (1, 55, 74).
    """
    indices = evenly(range(len(source.names)), MOST_PAIRS)
    return mean_log_depth(source.depth_maps(indices, workers, skip_bad))


def _with_training_pairs(folder: StrPath) -> Path | None:
    """Return the NYU folder of a test set if it has a Train folder, else None. `folder`: the NYU folder or its Test."""
    folder = Path(folder)
    root = folder.parent if folder.resolve().name == "Test" and not (folder / "Test").is_dir() else folder
    return root if (root / "Train").is_dir() else None


def _mean_difference(depth_m: Floats, log_depth: Floats | float) -> float:
    """Return the mean of log target minus prediction over the measured pixels, or 0 if there are none."""
    measured = depth_m > 0
    return float((clipped_log(depth_m) - log_depth)[measured].mean()) if measured.any() else 0.0


def _fit_to_targets(pairs: Sequence[Pair], mean_map: Floats | None, workers: int) -> tuple[np.float32, np.float32]:
    """Fit the baselines to the targets of `pairs`.

    Returns:
        (best constant log depth, best shift of the log-depth map `mean_map`).
    """
    constants, shifts = [], []
    with decoding_pool(workers) as pool:
        for depth_m in pool.map(lambda pair: image.network_depth(image.load_test_depth(pair.depth)), pairs):
            if (depth_m > 0).any():
                constants.append(_mean_difference(depth_m, 0.0))
                shifts.append(0.0 if mean_map is None else _mean_difference(depth_m, mean_map))
    if not constants:
        raise CheckFailed("no measured pixel in any target: nothing to score")
    return np.float32(np.mean(constants)), np.float32(np.mean(shifts))


def clipped_log(depth_m: Array) -> Array:
    """Return the natural logarithm of metres clipped to DEPTH_RANGE_M."""
    return np.log(np.clip(depth_m, *DEPTH_RANGE_M))


def mean_log_depth(depth_maps: Iterable[Floats]) -> Floats:
    """Return the mean log depth (1, 55, 74) of depth maps (55, 74) in metres. Unmeasured pixels do not count."""
    total = np.zeros((2, *image.DEPTH_SIZE))
    for depth_m in depth_maps:
        measured = depth_m > 0
        total += clipped_log(depth_m) * measured, measured
    return (total[0] / np.maximum(total[1], 1))[None].astype(np.float32)
