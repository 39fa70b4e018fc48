"""Depth metrics in NumPy: one value an image, right for any batch size.

Predictions are **log depth** on the net's 55x74 grid; targets are metres, 0 where not measured.
"""

from collections.abc import Iterable, Mapping, Sequence

import cv2
import numpy as np

from src.base.arrays import Array, Doubles
from src.base.errors import CheckFailed, NotFinite

METRICS = ("delta1", "delta2", "delta3", "abs_rel", "sq_rel", "rmse", "rmse_log", "si")
PROTOCOLS = ("depthnet", "eigen")
DEPTH_RANGE_M = (0.1, 10.0)

# Protocol "eigen", in pixels of 480x640: what the nets see, and the crop on which NYU is scored.
VIEW_ROWS, VIEW_COLUMNS = (12, 468), (16, 624)
EIGEN_ROWS, EIGEN_COLUMNS = (45, 471), (41, 601)
EIGEN_VALID_M = (1e-3, 10.0)

# The names that users' scripts look for in the final line of eval.py and postprocess.py.
_FINAL_LINE_NAMES = {"delta1": "delta1_loss", "delta2": "delta2_loss", "delta3": "delta3_loss",
                     "abs_rel": "abs_relative_loss", "sq_rel": "sqr_relative_loss",
                     "rmse": "rmse_linear_loss", "rmse_log": "rmse_log_loss"}


def evaluate(log_depth: Array, depth_m: Array, protocol: str = "depthnet") -> dict[str, Doubles]:
    """Score predictions image by image.

    Args:
        log_depth: (N, 1, 55, 74) predicted natural log of metres.
        depth_m: target metres: (N, 1, 55, 74) for "depthnet", (N, 1, 480, 640) for "eigen".
        protocol: "depthnet": both clipped to [0.1, 10] m, every measured pixel of the small grid.
            "eigen": the prediction resized to its place in the full picture, scored on rows 45..471 and
            columns 41..601 as far as the net sees them, target within (1e-3, 10) m.

    Returns:
        dict of float64 arrays (N,), keys METRICS. An image without a valid pixel is NaN in each.

    Raises:
        ValueError: unknown protocol, or shapes that do not belong together.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}, expected one of {', '.join(PROTOCOLS)}")
    log_depth, depth_m = np.asarray(log_depth), np.asarray(depth_m)
    if len(log_depth) != len(depth_m):
        raise ValueError(f"{len(log_depth)} predictions for {len(depth_m)} targets")
    rows = [_image_metrics(*valid_pixels(*one, protocol)) for one in zip(log_depth, depth_m, strict=True)]
    return {name: np.array([row[i] for row in rows], np.float64) for i, name in enumerate(METRICS)}


def finite(log_depth: Array, names: Iterable[object]) -> Array:
    """`log_depth` (N, ...) as it is: the check between a net and whoever uses its values.

    Raises NotFinite naming the pictures (`names`, N of them) whose prediction is not.
    """
    bad = [str(name) for name, one in zip(names, log_depth, strict=True) if not np.isfinite(one).all()]
    if bad:
        more = f" (and {len(bad) - 3} more)" if len(bad) > 3 else ""
        raise NotFinite(f"{', '.join(bad[:3])}{more}: the net's prediction is not finite: are these its weights?")
    return log_depth


def valid_pixels(log_depth: Array, depth_m: Array, protocol: str) -> tuple[Doubles, Doubles]:
    """The two float64 vectors, predicted and target metres, that `protocol` compares in one image."""
    log_depth, depth_m = np.squeeze(log_depth, 0), np.squeeze(depth_m, 0).astype(np.float64)
    if protocol == "eigen":
        log_depth, depth_m = _eigen_region(log_depth, depth_m)
        valid = (depth_m > EIGEN_VALID_M[0]) & (depth_m < EIGEN_VALID_M[1])
    else:
        valid = depth_m > 0
    if log_depth.shape != depth_m.shape:
        raise ValueError(f"prediction {log_depth.shape} and target {depth_m.shape} differ in size")
    prediction_m = np.exp(log_depth[valid].astype(np.float64))
    return np.clip(prediction_m, *DEPTH_RANGE_M), np.clip(depth_m[valid], *DEPTH_RANGE_M)


def _eigen_region(log_depth: Array, depth_m: Doubles) -> tuple[Doubles, Doubles]:
    if depth_m.shape != (480, 640):
        raise ValueError(f"protocol eigen scores targets of 480x640, got {depth_m.shape}")
    view_size = VIEW_COLUMNS[1] - VIEW_COLUMNS[0], VIEW_ROWS[1] - VIEW_ROWS[0]
    prediction_m = cv2.resize(np.exp(log_depth.astype(np.float64)), view_size)
    top, bottom = max(EIGEN_ROWS[0], VIEW_ROWS[0]), min(EIGEN_ROWS[1], VIEW_ROWS[1])
    left, right = max(EIGEN_COLUMNS[0], VIEW_COLUMNS[0]), min(EIGEN_COLUMNS[1], VIEW_COLUMNS[1])
    scored = prediction_m[top - VIEW_ROWS[0]:bottom - VIEW_ROWS[0], left - VIEW_COLUMNS[0]:right - VIEW_COLUMNS[0]]
    return np.log(scored), depth_m[top:bottom, left:right]


def _image_metrics(prediction_m: Doubles, target_m: Doubles) -> list[float]:
    if not target_m.size:
        return [np.nan] * len(METRICS)
    ratio = np.maximum(prediction_m / target_m, target_m / prediction_m)
    error_m = prediction_m - target_m
    log_error = np.log(prediction_m) - np.log(target_m)
    return [
        *((ratio <= 1.25**power).mean() for power in (1, 2, 3)),
        (np.abs(error_m) / target_m).mean(),
        (error_m**2 / target_m).mean(),
        np.sqrt((error_m**2).mean()),
        np.sqrt((log_error**2).mean()),
        log_error.std(),
    ]


def means(per_image: Mapping[str, Sequence[float] | Doubles]) -> dict[str, float]:
    """The mean over images of each metric, images without a valid pixel left out. Raises CheckFailed when none is
    left: a mean over nothing is not 0."""
    if not np.isfinite(per_image[METRICS[0]]).any():
        raise CheckFailed("no measured pixel in any target: nothing to score")
    return {name: float(np.nanmean(values)) for name, values in per_image.items()}


def final_line(net_name: str, mean: Mapping[str, float]) -> str:
    """The line that ends an evaluation, with the names that users' scripts look for."""
    return f"{net_name}: " + ", ".join(f"{label}: {mean[name]:.6f}" for name, label in _FINAL_LINE_NAMES.items())
