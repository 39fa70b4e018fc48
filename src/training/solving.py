"""Solves the dense layers of PaperCoarseNet on training pairs: ridge regression of log depth on its features."""

from collections.abc import Iterator

import mindspore as ms
import numpy as np

from src.base.arrays import Doubles, Floats
from src.data.listing import DataError, evenly
from src.data.plain import Source
from src.net import DEPTH_CELLS, PaperCoarseNet
from src.scoring.baselines import clipped_log, mean_log_depth

MOST_PAIRS = 1000  # evenly spaced; each counts with its mirror image
COMPONENTS = 64  # of the log depth maps
RIDGE = 3.0  # relative to the mean square of a feature vector: the best of 1 to 10 on 1,003 pairs


def solve_dense_layers(net: PaperCoarseNet, source: Source, workers: int, skip_bad: bool) -> None:
    """Set fc6 and fc7 so that the net predicts the log depth of training pairs, as well as a linear function can.

    v = ReLU(v) - ReLU(-v), so that a component of log depth takes two units of fc6. Each stands there 32 times, so that
    dropout changes their sum by little.

    Args:
        net: with trained convolutions.
        source: the training pairs.
        workers: decoding threads.
        skip_bad: leave out unreadable pairs instead of raising image.ImageError.

    Raises DataError if no pair has a measured pixel.
    """
    pairs = list(_pairs(net, source, workers, skip_bad))
    if not pairs:
        raise DataError("no measured pixel in any training pair")
    features, log_depth = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
    mean, basis = principal_components(log_depth)
    weight, bias = ridge_regression(features, (log_depth - mean) @ np.linalg.pinv(basis))
    copies = net.dropout_units // (2 * COMPONENTS)
    units = np.tile(np.concatenate([np.eye(COMPONENTS), -np.eye(COMPONENTS)]), (copies, 1))
    net.fc6.weight.set_data(ms.Tensor((units @ weight.T).astype(np.float32)))
    net.fc6.bias.set_data(ms.Tensor((units @ bias).astype(np.float32)))
    net.fc7.weight.set_data(ms.Tensor((basis.T @ units.T / copies).astype(np.float32)))
    net.fc7.bias.set_data(ms.Tensor(mean.astype(np.float32)))


def _pairs(net: PaperCoarseNet, source: Source, workers: int, skip_bad: bool) -> Iterator[tuple[Floats, Doubles]]:
    """Yield (features (2, 12288), log depth (2, 4070)) of training pairs and their mirror images. Unmeasured pixels get
    the mean log-depth map, shifted to the pair's mean."""
    indices = evenly(range(len(source.names)), MOST_PAIRS)
    mean_map = mean_log_depth(source.depth_maps(indices, workers, skip_bad))[0]
    for _, rgb, depth_m in source.samples(indices, workers, skip_bad):
        measured = depth_m > 0
        log_depth = clipped_log(depth_m)
        if measured.any():
            log_depth[~measured] = (mean_map + (log_depth - mean_map)[measured].mean())[~measured]
            pixels = np.stack([rgb, rgb[:, ::-1]]).transpose(0, 3, 1, 2).astype(np.float32) / 255
            maps = np.stack([log_depth, log_depth[:, ::-1]]).reshape(2, DEPTH_CELLS)
            yield net.features(ms.Tensor(pixels)).asnumpy().astype(np.float32), maps.astype(np.float64)


def principal_components(maps: Doubles) -> tuple[Doubles, Doubles]:
    """Return the mean (D,) and the leading principal components (COMPONENTS, D) of vectors (N, D), each as long as its
    standard deviation; 0 where there are fewer."""
    mean, basis = maps.mean(0), np.zeros((COMPONENTS, maps.shape[1]))
    _, lengths, directions = np.linalg.svd(maps - mean, full_matrices=False)
    count = min(COMPONENTS, len(lengths))
    basis[:count] = directions[:count] * (lengths[:count, None] / np.sqrt(len(maps)))
    return mean, basis


def ridge_regression(x: Floats, y: Doubles) -> tuple[Doubles, Doubles]:
    """Return the weight (F, K) and bias (K,) with x @ weight + bias near y, for x (N, F) and y (N, K).

    Solved in N unknowns: weight = z.T (z z.T + RIDGE I)^-1 (y - mean), where z are the centred features, scaled to the
    mean length 1.
    """
    x_mean, y_mean = x.mean(0), y.mean(0)
    z = x - x_mean
    scale = 1 / (np.sqrt((z**2).sum(1).mean()) or 1)
    z *= scale
    kernel = (z @ z.T).astype(np.float64) + RIDGE * np.eye(len(z))
    weight = z.T @ np.linalg.solve(kernel, y - y_mean) * scale
    return weight, y_mean - x_mean @ weight
