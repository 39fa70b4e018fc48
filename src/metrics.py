"""Depth metrics in NumPy, computed per image and therefore independent of the batch size.

Predictions are **log depth** (natural log of metres) on the nets' 55x74 grid. Targets are metres, 0 = not measured.
"""

from collections.abc import Iterable, Mapping, Sequence

import cv2
import numpy as np

from src.base.arrays import Array, Doubles
from src.base.errors import CheckFailed, NotFinite

METRICS = ("delta1", "delta2", "delta3", "abs_rel", "sq_rel", "rmse", "rmse_log", "si")
PROTOCOLS = ("depthnet", "eigen")
DEPTH_RANGE_M = (0.1, 10.0)

# Protocol "eigen", in pixels of 480x640: the crop that the nets see, and the usual evaluation crop of NYU.
VIEW_ROWS, VIEW_COLUMNS = (12, 468), (16, 624)
EIGEN_ROWS, EIGEN_COLUMNS = (45, 471), (41, 601)
EIGEN_VALID_M = (1e-3, 10.0)

# Metric names in the final line of eval.py and postprocess.py, which users' scripts search for.
_FINAL_LINE_NAMES = {
    "delta1": "delta1_loss",
    "delta2": "delta2_loss",
    "delta3": "delta3_loss",
    "abs_rel": "abs_relative_loss",
    "sq_rel": "sqr_relative_loss",
    "rmse": "rmse_linear_loss",
    "rmse_log": "rmse_log_loss",
}


def evaluate(log_depth: Array, depth_m: Array, protocol: str = "depthnet") -> dict[str, Doubles]:
    """Score predictions image by image.

    Args:
        log_depth: (N, 1, 55, 74) predicted natural log of metres.
        depth_m: target metres: (N, 1, 55, 74) for "depthnet", (N, 1, 480, 640) for "eigen".
        protocol: "depthnet": all measured pixels of the 55x74 grid, prediction and target clipped to [0.1, 10] m.
            "eigen": the prediction is resized to its region of the full picture, and compared on rows 45..471 and
            columns 41..601 where the nets see them, for targets within (1e-3, 10) m.

    Returns:
        dict of METRICS names to float64 arrays (N,); NaN for an image without a valid pixel.

    Raises:
        ValueError: unknown protocol, or shapes that do not match.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}, expected one of {', '.join(PROTOCOLS)}")
    log_depth, depth_m = np.asarray(log_depth), np.asarray(depth_m)
    if len(log_depth) != len(depth_m):
        raise ValueError(f"{len(log_depth)} predictions for {len(depth_m)} targets")
    rows = [
        _image_metrics(*valid_pixels(prediction, target, protocol))
        for prediction, target in zip(log_depth, depth_m, strict=True)
    ]
    return {name: np.array([row[i] for row in rows], np.float64) for i, name in enumerate(METRICS)}


def finite(log_depth: Array, names: Iterable[object]) -> Array:
    """Check that a prediction is finite.

    Args:
        log_depth: (N, ...) prediction of a net.
        names: the N names of the pictures.

    Returns:
        `log_depth` itself.

    Raises NotFinite naming the pictures whose prediction contains NaN or infinity.
    """
    bad = [str(name) for name, values in zip(names, log_depth, strict=True) if not np.isfinite(values).all()]
    if bad:
        more = f" (and {len(bad) - 3} more)" if len(bad) > 3 else ""
        raise NotFinite(f"{', '.join(bad[:3])}{more}: the net's prediction is not finite: are these its weights?")
    return log_depth


def valid_pixels(log_depth: Array, depth_m: Array, protocol: str) -> tuple[Doubles, Doubles]:
    """Return the predicted and target metres, two float64 vectors, that a protocol compares in an image.

    Args:
        log_depth: (1, 55, 74) natural log of metres.
        depth_m: target metres, (1, 55, 74) or (1, 480, 640), as in `evaluate`.
        protocol: of PROTOCOLS.

    Raises ValueError if the shapes do not match.
    """
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
    scored = prediction_m[top - VIEW_ROWS[0] : bottom - VIEW_ROWS[0], left - VIEW_COLUMNS[0] : right - VIEW_COLUMNS[0]]
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
    """Return the mean over images of each metric, without images that have no valid pixel. Raises CheckFailed if no
    image has one."""
    if not np.isfinite(per_image[METRICS[0]]).any():
        raise CheckFailed("no measured pixel in any target: nothing to score")
    return {name: float(np.nanmean(values)) for name, values in per_image.items()}


def final_line(net_name: str, mean: Mapping[str, float]) -> str:
    """Return the final line of an evaluation, with the metric names that users' scripts search for."""
    return f"{net_name}: " + ", ".join(f"{label}: {mean[name]:.6f}" for name, label in _FINAL_LINE_NAMES.items())
