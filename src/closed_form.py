"""First weights that see already: a coarse net whose convolutions are designed and whose last layer is solved.

The convolutions compute, with nothing but what ReLU and pooling can do, what is known to tell depth in a picture
(Saxena, Sun and Ng, 2009; Torralba and Oliva, 2002): how much of each scale and direction there is in each place,
absolutely and as a share of the neighbourhood (as in Dalal and Triggs, 2005), and colours. In PaperCoarseNet, fc6 takes
random features of them (Rahimi and Recht, 2007), and fc7 is their ridge regression to log depth. In CoarseNet, fc13 is
the ridge regression on the one map that it sees: there the two deconvolutions lay 16 numbers of each of 14x19 places
side by side, as 4x4 pixels.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import mindspore as ms
import numpy as np
from mindspore import nn

from src.base import cli
from src.base.arrays import Array, Doubles, Floats, Pixels
from src.base.errors import UserError
from src.data.listing import evenly
from src.data.sampling import counter_rng
from src.data_loader import TrainingData
from src.net import DEPTH_CELLS, PaperCoarseNet
from src.scoring.baselines import filled_log_depth

MOST_PAIRS = 4000  # evenly spaced; each is two rows of 12,288 features
PROJECTION_PAIRS, _PROJECTION_RIDGE = 160, 2.5  # of the combinations that CoarseNet keeps
COMPONENTS = 1500  # leading principal components that the random features are taken of
RIDGES = (1e3, 3e3, 1e4, 3e4)
VALIDATION_SHARE = 5  # every fifth scene chooses among them
_SCALES, _DIRECTIONS = (1.0, 2.0), 16  # of the derivatives of a Gaussian in conv1, sigma in pixels
_LUMA = np.array([0.299, 0.587, 0.114])
_OPPONENTS = {"red-green": np.array([1, -1, 0]), "blue-yellow": np.array([-0.5, -0.5, 1])}
_STEP = 1.0  # by which one ramp is later than its twin: their difference is a ramp between 0 and 1

logger = logging.getLogger(__name__)

Name: TypeAlias = tuple[Any, ...]  # of a filter: what it is of, and its numbers


def solve(net: nn.Cell, data: TrainingData, design: bool = True, ridge: float | None = None) -> None:
    """Set the weights of a coarse net from the samples of `data` (a TrainingData) and their mirror images.

    Args:
        net: CoarseNet or PaperCoarseNet.
        design: set all of them; else those of the last layer, for the features that the net has.
        ridge: how strong the regression is; None is what serves every fifth scene best when it is left out. (A net that
            was trained on these scenes wants more than that says.)

    Raises UserError when there are no two scenes to validate with.
    """
    source, rng = data.source, counter_rng(data.schedule.seed, 0)
    indices = evenly(range(len(source.names)), MOST_PAIRS)
    if ridge is None and len({_scene(source.names[index]) for index in indices}) < 2:
        raise UserError("--start closed_form: 1 scene of training pairs: expected two or more, or --ridge")
    paper = isinstance(net, PaperCoarseNet)
    if design:
        rgb = np.stack([rgb for _, rgb, _ in _samples(data, evenly(indices, 64))]).transpose(0, 3, 1, 2)
        _design(net, rng, rgb, _PAPER if paper else _COARSE)
        if not paper:
            _lay_side_by_side(net, data, evenly(indices, PROJECTION_PAIRS))
    used, units, log_depth = _rows(net.features, data, indices)
    scenes = [_scene(source.names[index]) for index in used]
    if paper and design:
        units, weight, bias = _random_features(units, net.dropout_units, rng)
        _set(net.fc6, weight, bias)
    elif paper:
        units = np.maximum(units @ net.fc6.weight.asnumpy().T + net.fc6.bias.asnumpy(), 0)
    ridge = ridge or _validated_ridge(units, log_depth, scenes)
    _set(net.fc7 if paper else net.fc13, *_ridge_regression(units, log_depth, ridge))
    logger.info("closed form: %d pairs and their mirror images, ridge %g", len(used) // 2, ridge)


def _scene(name: str) -> str:
    return name.split("/")[0]


def _set(layer: nn.Cell, weight: Array, bias: Array) -> None:
    layer.weight.set_data(ms.Tensor(np.ascontiguousarray(weight), ms.float32))
    layer.bias.set_data(ms.Tensor(np.ascontiguousarray(bias), ms.float32))


# --- the convolutions

_TENT = np.outer([1, 2, 3, 2, 1], [1, 2, 3, 2, 1]) / 81  # 5x5
_MEAN = np.full((3, 3), 1 / 9)
_CENTRE = np.pad(np.ones((1, 1)), 1)


def _grid(size: int) -> Doubles:
    return np.stack(np.meshgrid(*2 * [np.arange(size) - (size - 1) / 2]))


def _gauss(sigma: float, size: int) -> Doubles:
    return np.exp(-(_grid(size)**2).sum(0) / 2 / sigma**2)


def _unit(kernel: Doubles) -> Doubles:
    """Scaled so that an edge of height 1 gives 1 at most."""
    return kernel / (np.abs(kernel).sum() / 2)


def _derivative(sigma: float, angle: float, size: int) -> Doubles:
    x, y = _grid(size)
    return _unit((np.cos(angle) * x + np.sin(angle) * y) * _gauss(sigma, size))


def _blob(sigma: float, size: int) -> Doubles:
    laplacian = ((_grid(size)**2).sum(0) / 2 / sigma**2 - 1) * _gauss(sigma, size)
    return _unit(laplacian - laplacian.mean())


class _Filters:
    """The designed filters of one convolution, by name; each is a sum of kernels on channels of the layer below."""

    def __init__(self, conv: nn.Conv2d, below: "_Filters | None" = None) -> None:
        self.conv, self.below = conv, below
        self.names: dict[Name, int] = {}
        self.weight, self.bias = np.zeros(conv.weight.shape), np.zeros(len(conv.bias))

    def add(self, name: Name, parts: Sequence[tuple[Any, Doubles]], bias: float = 0.0) -> None:
        """`parts`: (channel below by name, kernel) pairs; for conv1 (colour weights (3,), kernel) pairs."""
        number = self.names[name] = len(self.names)
        for channel, kernel in parts:
            if self.below is None:
                self.weight[number] += np.multiply.outer(channel, kernel)
            else:
                self.weight[number, self.below.names[channel]] += kernel
        self.bias[number] = bias

    def of_below(self) -> list[Name]:
        """The names of the filters of the layer below."""
        return list(self.below.names) if self.below else []

    def apply(self, rng: np.random.Generator, forward: Callable[[], Floats]) -> None:
        """Set the layer's weights: the designed filters, and random ones (He et al., 2015) of the same spread behind
        them. `forward` gives the layer's output (N, C, H, W) for some pictures."""
        count, shape = len(self.names), self.weight.shape
        rest = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), (shape[0] - count, *shape[1:]))
        self.weight[count:] = rest - rest.mean((1, 2, 3), keepdims=True)
        _set(self.conv, self.weight, self.bias)
        spread = forward().std((0, 2, 3))
        self.weight[count:] *= (np.median(spread[:count]) / np.maximum(spread[count:], 1e-6))[:, None, None, None]
        _set(self.conv, self.weight, self.bias)


def _design(net: nn.Cell, rng: np.random.Generator, rgb: Pixels,
            layers: Sequence[tuple[str, Callable[[_Filters], None], bool]]) -> None:
    """Set the convolutions by `layers`: name, design, whether a pooling follows. `rgb` uint8 (N, 3, 228, 304) sets the
    spread of the random filters."""
    x = ms.Tensor(rgb.astype(np.float32) / 255)
    below = None
    for name, design, pooled in layers:
        conv = getattr(net, name)
        below = _Filters(conv, below)
        design(below)
        below.apply(rng, lambda: conv(x).asnumpy())  # noqa: B023 (called here)
        x = net.relu(conv(x))
        if pooled:
            x = net.pool(x)


def _angles(count: int) -> list[tuple[int, float]]:
    return [(number, 2 * np.pi * number / count) for number in range(count)]


def _conv1(filters: _Filters) -> None:
    """Edges in 16 directions with sign, blobs, colours, edges between colours: 62 filters."""
    size = filters.weight.shape[-1]
    for sigma in _SCALES:
        for direction, angle in _angles(_DIRECTIONS):
            filters.add(("edge", sigma, direction), [(_LUMA, _derivative(sigma, angle, size))], -0.004)
        for sign in (1, -1):
            filters.add(("blob", sigma, sign), [(_LUMA, sign * _blob(sigma, size))])
    mean = _gauss(2.0, size) / _gauss(2.0, size).sum()
    for channel, colour in enumerate(np.eye(3)):
        filters.add(("colour", channel), [(colour, mean)])
        filters.add(("dark", channel), [(colour, -mean)], 1.0)
    for name, colour in _OPPONENTS.items():
        for direction, angle in _angles(8):
            filters.add((name, direction), [(colour, _derivative(2.0, angle, size))], -0.01)
        for sign in (1, -1):
            filters.add((name, "hue", sign), [(colour, sign * mean)])


def _both_signs(sigma: float, orientation: int) -> list[Name]:
    return [("edge", sigma, orientation), ("edge", sigma, orientation + _DIRECTIONS // 2)]


def _energy(sigma: float, kernel: Doubles) -> list[tuple[Name, Doubles]]:
    return [(("edge", sigma, direction), 2 * kernel / _DIRECTIONS) for direction, _ in _angles(_DIRECTIONS)]


def _excess(filters: _Filters, sigma: float, kernel: Doubles) -> None:
    """For each orientation how far it exceeds the mean of all: ramps whose difference saturates."""
    for orientation in range(_DIRECTIONS // 2):
        for share in (1.2, 2.0):
            for late in (0, 1):
                filters.add(("more", sigma, orientation, share, late),
                            [(name, 25 * kernel) for name in _both_signs(sigma, orientation)]
                            + _energy(sigma, -25 * share * kernel), -0.25 - late * _STEP)


def _edge_means(filters: _Filters, sigma: float, kernel: Doubles) -> None:
    for direction, _ in _angles(_DIRECTIONS):
        filters.add(("edge", sigma, direction), [(("edge", sigma, direction), kernel)])
    for threshold in (0.0, 0.03, 0.08, 0.16):
        filters.add(("energy", sigma, threshold), _energy(sigma, kernel), -threshold)
    for sign in (1, -1):
        filters.add(("blob", sigma, sign), [(("blob", sigma, sign), kernel)])


def _colour_means(filters: _Filters, kernel: Doubles) -> None:
    for channel in range(3):
        filters.add(("colour", channel), [(("colour", channel), kernel)])
        filters.add(("dark", channel), [(("dark", channel), kernel)])
        for threshold in (0.25, 0.5, 0.75):
            filters.add(("bright", channel, threshold), [(("colour", channel), kernel)], -threshold)
    for name in _OPPONENTS:
        for orientation in range(4):
            filters.add((name, orientation), [((name, orientation), kernel), ((name, orientation + 4), kernel)])
        for sign in (1, -1):
            filters.add((name, "hue", sign), [((name, "hue", sign), kernel)])


def _conv2(filters: _Filters) -> None:
    """Local means, and the excess of each orientation."""
    for sigma in _SCALES:
        _excess(filters, sigma, _TENT)
        _edge_means(filters, sigma, _TENT)
    _colour_means(filters, _TENT)


def _means(filters: _Filters, ramps: str | None = None) -> None:
    """Means of all channels below; of those called `ramps` the difference of each early one and its late twin."""
    for name in filters.of_below():
        if name[0] != ramps:
            filters.add(name, [(name, _MEAN)])
        elif name[-1] == 0:
            filters.add(name[:-1], [(name, _MEAN), ((*name[:-1], 1), -_MEAN)])


def _conv3(filters: _Filters) -> None:
    """The ramps' differences; means of the rest."""
    _means(filters, "more")


def _conv4(filters: _Filters) -> None:
    """What is there, and each orientation's share of the energy in the wider neighbourhood: ramps again."""
    for name in filters.of_below():
        filters.add(name, [(name, _CENTRE)])
    _shares(filters)


def _shares(filters: _Filters) -> None:
    for sigma in _SCALES:
        for orientation in range(_DIRECTIONS // 2):
            for share in (0.5, 1.0, 1.5, 2.2):
                for late in (0, 1):
                    filters.add(("share", sigma, orientation, share, late),
                                [(name, 70 * _CENTRE) for name in _both_signs(sigma, orientation)]
                                + [(("energy", sigma, 0.0), -70 * share * _MEAN)], -0.14 - late * _STEP)


def _conv5(filters: _Filters) -> None:
    """Means on 6x8 places; of the colours also in the quarters of each."""
    _means(filters, "share")
    for channel in range(3):
        for row, column in np.ndindex(2, 2):
            corner = np.zeros((3, 3))
            corner[2 * row, 2 * column] = 1
            filters.add(("quarter", channel, row, column), [(("colour", channel), corner)])


def _coarse_conv2(filters: _Filters) -> None:
    """Local means: CoarseNet's layers see less of the picture at once."""
    for sigma in _SCALES:
        _edge_means(filters, sigma, _TENT)
    _colour_means(filters, _TENT)


def _coarse_conv3(filters: _Filters) -> None:
    """The excess of each orientation; means of the rest."""
    for sigma in _SCALES:
        _excess(filters, sigma, _MEAN)
    _means(filters)


def _coarse_conv4(filters: _Filters) -> None:
    """The ramps' differences and means of the rest; each orientation's share."""
    _means(filters, "more")
    _shares(filters)


_PAPER = (("conv1", _conv1, True), ("conv2", _conv2, True), ("conv3", _conv3, False), ("conv4", _conv4, False),
          ("conv5", _conv5, False))
_COARSE = (("conv1", _conv1, True), ("conv2", _coarse_conv2, True), ("conv3", _coarse_conv3, True),
           ("conv4", _coarse_conv4, True))


def _lay_side_by_side(net: nn.Cell, data: TrainingData, indices: Sequence[int]) -> None:
    """Set the layers of CoarseNet behind conv4: conv5 blurs, three times; the deconvolutions lay the 16 combinations of
    its channels that tell most of depth into 4x4 pixels; what is left hands that one map on. The other channels keep
    their random weights and have no say yet."""
    _set(net.conv5, np.eye(512)[:, :, None, None] * np.outer([1, 2, 1], [1, 2, 1]) / 16, np.zeros(512))

    def blurred(rgb: ms.Tensor) -> ms.Tensor:
        x = rgb
        for name, *_ in _COARSE:
            x = net.pool(net.relu(getattr(net, name)(x)))
        for _ in range(3):
            x = net.conv5(x)
        return x

    _, maps, log_depth = _rows(blurred, data, indices)
    projection, offset = _most_telling(maps, log_depth, 16)
    names = ("deconv6", "conv7", "deconv8", "conv9", "conv10", "conv11", "conv12")
    weights = {name: getattr(net, name).weight.asnumpy().copy() for name in names}
    biases = {name: getattr(net, name).bias.asnumpy().copy() for name in names}
    weights["deconv6"][:, :4] = projection.reshape(512, 2, 2, 4).transpose(0, 3, 1, 2)
    biases["deconv6"][:4] = offset.reshape(4, 4).max(0)
    for number in range(4):
        weights["conv7"][number] = 0
        weights["conv7"][number, 256 + number, 1, 1] = 1
    weights["deconv8"][:, 0] = 0
    weights["deconv8"][range(4), 0, [0, 0, 1, 1], [0, 1, 0, 1]] = 1
    for name, channel in (("conv9", 128), ("conv10", 0), ("conv11", 0), ("conv12", 0)):
        weights[name][0] = 0
        weights[name][0, channel, 1, 1] = 1
    for name in names:
        _set(getattr(net, name), weights[name], biases[name])


def _most_telling(maps: Floats, log_depth: Floats, count: int) -> tuple[Array, Array]:
    """The `count` combinations of channels, the same in each place, that carry most of what a ridge regression on all
    channels in all places says of depth.

    Args:
        maps: (N, C, H, W), not negative.
        log_depth: (N, cells).

    Returns:
        their weights (C, count), each combination of variance 1 within a place, and the offsets (count,) that make each
        positive on these pictures.
    """
    channels = maps.shape[1]
    spread = maps.std((0, 2, 3))
    spread = np.where(spread > 0, spread, np.inf)  # what is the same everywhere says nothing
    rows = ((maps - maps.mean(0)) / spread[:, None, None]).reshape(len(maps), -1)
    wanted, strengths, _ = np.linalg.svd(log_depth - log_depth.mean(0), full_matrices=False)
    gram = rows @ rows.T
    gram[np.diag_indices_from(gram)] += _PROJECTION_RIDGE * rows.shape[1]
    regression = (rows.T @ np.linalg.solve(gram, wanted[:, :40] * strengths[:40])).reshape(channels, -1)
    by_place = rows.reshape(len(rows), channels, -1)
    covariance = np.tensordot(by_place, by_place, ((0, 2), (0, 2))) / by_place[:, 0].size
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    inverse = (vectors / np.sqrt(values.clip(1e-3 * values[-1]))) @ vectors.T
    chosen = inverse @ np.linalg.eigh(root @ (regression @ regression.T) @ root)[1][:, -count:] / spread[:, None]
    return chosen, -np.tensordot(maps, chosen, (1, 0)).min((0, 1, 2))


# --- the dense layers


def _samples(data: TrainingData, indices: Sequence[int]) -> Iterator[tuple[int, Pixels, Floats]]:
    yield from data.source.samples(indices, data.workers, data.skip_bad)


def _rows(features_of: Callable[[ms.Tensor], ms.Tensor], data: TrainingData,
          indices: Sequence[int]) -> tuple[list[int], Floats, Floats]:
    """Of the samples, each followed by its mirror image: index (N,), features (N, ...), log depth (N, 4070).
    `features_of`: what computes them of RGB (N, 3, 228, 304)."""
    used: list[int] = []
    features, depth_maps = [], []
    batch: list[Pixels] = []

    def finish_batch() -> None:
        if batch:
            pictures = np.stack(batch).transpose(0, 3, 1, 2).astype(np.float32) / 255
            features.append(features_of(ms.Tensor(pictures)).asnumpy())
            bar.update(len(batch))
            batch.clear()

    with cli.progress(2 * len(indices), "closed form", "picture") as bar:
        for index, rgb, depth_m in _samples(data, indices):
            used += [index, index]
            batch += [rgb, rgb[:, ::-1]]
            depth_maps += [depth_m, depth_m[:, ::-1]]
            if len(batch) == 32:
                finish_batch()
        finish_batch()
    log_depth, _ = filled_log_depth(depth_maps)
    return used, np.concatenate(features), log_depth.reshape(-1, DEPTH_CELLS).astype(np.float32)


def _random_features(rows: Floats, count: int, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """ReLU features (N, count) of random directions among the rows' leading principal components, and the weight
    (count, 12288) and bias (count,) that make them of the rows: every standardisation is folded in."""
    offset, scale = rows.mean(0), rows.std(0)
    scale += 0.01 * scale.mean()
    rows -= offset
    rows /= scale
    values, vectors = np.linalg.eigh(rows @ rows.T)
    values, vectors = values[-COMPONENTS:], vectors[:, -COMPONENTS:]
    positive = values > 1e-6 * values[-1]
    components = rows.T @ (vectors[:, positive] / np.sqrt(values[positive]))
    weight = components @ rng.normal(size=(components.shape[1], count)).astype(np.float32)
    weight /= (rows @ weight).std(0)
    bias = rng.normal(0, 0.5, count).astype(np.float32)
    units = np.maximum(rows @ weight + bias, 0)
    weight /= scale[:, None]
    return units, weight.T, bias - offset @ weight


def _ridge_regression(units: Floats, log_depth: Floats, ridge: float) -> tuple[Array, Array]:
    """The weight (4070, count) and bias (4070,) of the ridge regression on the standardised units.

    Of the primal and the dual form (Saunders, Gammerman and Vovk, 1998) the smaller system: few pictures are quick.
    """
    offset, scale, mean = units.mean(0), units.std(0) + 1e-6, log_depth.mean(0)
    standard, wanted = (units - offset) / scale, log_depth - mean
    rows, count = standard.shape
    if rows < count:
        weight = standard.T @ np.linalg.solve(standard @ standard.T + ridge * np.eye(rows), wanted)
    else:
        weight = np.linalg.solve(standard.T @ standard + ridge * np.eye(count), standard.T @ wanted)
    weight /= scale[:, None]
    return weight.T, mean - offset @ weight


def _validated_ridge(units: Floats, log_depth: Floats, scenes: Sequence[str]) -> float:
    """The ridge with the least error on every fifth scene when fitted on the others: of two or more."""
    held_out = np.isin(scenes, sorted(set(scenes))[::VALIDATION_SHARE])
    scores = {}
    for ridge in RIDGES:
        weight, bias = _ridge_regression(units[~held_out], log_depth[~held_out], ridge)
        scores[ridge] = float(np.sqrt(np.mean((units[held_out] @ weight.T + bias - log_depth[held_out])**2)))
        logger.info("ridge %g: rmse %.4f of log depth on every fifth scene", ridge, scores[ridge])
    return min(scores, key=scores.__getitem__)
