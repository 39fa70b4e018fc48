"""Ridge regression of the log depth map on the teacher's maps, averaged over 8x10 cells.

    python regression.py teacher.onnx regression.npz NYU

Fits the pairs of NYU/Train and their mirror images, prints the metrics on NYU/Test, and stores what predicts the depth
of pictures that have none, with the mean and the standard deviation of each of the student's target channels.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from teacher import Teacher, student_targets

from src.data import image
from src.data.listing import list_test, list_train
from src.data.plain import load_test_pair
from src.metrics import METRICS, evaluate, means

CELLS = (8, 10)
COMPONENTS = 64  # of the log depth maps


def cell_features(maps: list[np.ndarray]) -> np.ndarray:
    """The teacher's maps -> (N, features), each map averaged over 8x10 cells."""
    cells = []
    for array in maps:
        n, channels, height, width = array.shape
        rows, columns = height // CELLS[0], width // CELLS[1]
        cells.append(array.reshape(n, channels, CELLS[0], rows, CELLS[1], columns).mean((3, 5)).reshape(n, -1))
    return np.concatenate(cells, axis=1)


def principal_components(log_depth: np.ndarray, count: int = COMPONENTS) -> tuple[np.ndarray, np.ndarray]:
    """The mean (4070,) and the leading directions (count, 4070) of log depth maps (N, 4070), each of the length of
    their standard deviation."""
    mean = log_depth.mean(0)
    _, lengths, directions = np.linalg.svd(log_depth - mean, full_matrices=False)
    return mean, directions[:count] * (lengths[:count, None] / np.sqrt(len(log_depth)))


def scores(log_depth: np.ndarray, depth_m: np.ndarray) -> str:
    """The eight metrics of predictions (N, 4070) or (N, 1, 55, 74) as one line."""
    mean = means(evaluate(log_depth.reshape(-1, 1, *image.DEPTH_SIZE), depth_m.reshape(-1, 1, *image.DEPTH_SIZE)))
    return " ".join(f"{mean[name]:.3f}" for name in METRICS)


def load_pairs(nyu: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(pictures, metres of NYU/Train, the same of NYU/Test): uint8 (N, 228, 304, 3) and float32 (N, 55, 74)."""
    train = list_train(nyu)
    rgb = np.stack([image.network_pixels(image.load_rgb(pair.rgb)) for pair in train])
    depth_m = np.stack([image.network_depth(image.load_train_depth(pair.depth))[0] for pair in train])
    test = [load_test_pair(pair) for pair in list_test(nyu)]
    test_rgb = np.stack([np.rint(picture.transpose(1, 2, 0) * 255).astype(np.uint8) for picture, _ in test])
    return rgb, depth_m, test_rgb, np.stack([image.network_depth(depth)[0] for _, depth in test])


class DepthRegression:
    """Predicts log depth from the teacher's maps, and standardises the student's targets."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays

    @classmethod
    def load(cls, path: Path) -> "DepthRegression":
        with np.load(path) as arrays:
            return cls(dict(arrays))

    def predict(self, maps: list[np.ndarray]) -> np.ndarray:
        """The teacher's maps -> log depth (N, 55, 74)."""
        features = (cell_features(maps) - self.arrays["feature_mean"]) * self.arrays["feature_scale"]
        log_depth = features @ self.arrays["weight"] @ self.arrays["basis"] + self.arrays["mean"]
        return log_depth.reshape(-1, *image.DEPTH_SIZE)

    def standardised(self, fine: np.ndarray, coarse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The student's targets with the mean 0 and the standard deviation 1 in each channel."""
        return tuple(
            (array - self.arrays[f"{name}_mean"]) / self.arrays[f"{name}_std"]
            for name, array in (("fine", fine), ("coarse", coarse))
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("nyu", type=Path)
    parser.add_argument("--ridge", type=float, default=0.1)
    options = parser.parse_args()
    teacher = Teacher(options.teacher)
    rgb, depth_m, test_rgb, test_depth_m = load_pairs(options.nyu)
    targets: list[tuple[np.ndarray, np.ndarray]] = []

    def features(pictures: np.ndarray) -> np.ndarray:
        rows = []
        for start in range(0, len(pictures), 32):
            maps = teacher.maps(pictures[start : start + 32])
            if pictures is rgb:
                targets.append(student_targets(maps))
            rows.append(cell_features(maps))
        return np.concatenate(rows)

    x = np.concatenate([features(rgb), features(rgb[:, :, ::-1])])
    measured = np.where(depth_m > 0, depth_m, np.nanmean(np.where(depth_m > 0, depth_m, np.nan), axis=0))
    log_depth = np.log(np.clip(measured, 0.1, 10))
    y = np.concatenate([log_depth, log_depth[:, :, ::-1]]).reshape(len(x), -1)
    mean, basis = principal_components(y)
    feature_mean = x.mean(0)
    feature_scale = 1 / (x.std(0) + 1e-3 * x.std()) / np.sqrt(np.float32(x.shape[1]))
    x -= feature_mean
    x *= feature_scale
    coefficients = (y - mean) @ np.linalg.pinv(basis)
    weight = x.T @ np.linalg.solve(x @ x.T + options.ridge * np.eye(len(x)), coefficients)
    arrays = {
        "feature_mean": feature_mean,
        "feature_scale": feature_scale,
        "weight": weight,
        "basis": basis,
        "mean": mean,
    }
    for name, array in zip(("fine", "coarse"), map(np.concatenate, zip(*targets, strict=True)), strict=True):
        arrays[f"{name}_mean"] = array.mean((0, 2, 3))[:, None, None]
        arrays[f"{name}_std"] = array.std((0, 2, 3))[:, None, None]
    regression = DepthRegression({name: array.astype(np.float32) for name, array in arrays.items()})
    np.savez(options.output, **regression.arrays)
    predicted, mirrored = (
        np.concatenate(
            [regression.predict(teacher.maps(pictures[start : start + 30])) for start in range(0, len(pictures), 30)]
        )
        for pictures in (test_rgb, test_rgb[:, :, ::-1])
    )
    print("metrics on Test:", scores(predicted, test_depth_m))
    print("flip-averaged:  ", scores((predicted + mirrored[:, :, ::-1]) / 2, test_depth_m))


if __name__ == "__main__":
    main()
