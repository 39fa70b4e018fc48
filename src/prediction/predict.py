"""From any picture to its depth map: the one function behind every prediction that a user sees.

The nets take the middle of a 480x640 picture (`src.data.image`). A picture of another size or ratio is covered by
windows of that ratio, as large as they fit and evenly spread along the longer side; where windows overlap, their
depths are blended. The nets do not see the outermost 2.5 % of a window: there the depth of the nearest cell is
continued.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from src import metrics
from src.base import cli
from src.base.arrays import Array, Doubles, Floats, Pixels, Predict
from src.base.errors import UserError
from src.base.files import StrPath
from src.data import image

# A single window, in the middle, does for a ratio that is only so much from 4:3.
MOST_OUTSIDE = 0.05
# Of a picture's longer to its shorter side: each window is predicted, and a strip of pixels is no picture.
MOST_RATIO = 50
_CHANNELS = (1, 3, 4)
Net: TypeAlias = Callable[..., Floats]
Picture: TypeAlias = Array | Image.Image | StrPath
Window: TypeAlias = tuple[float, float, float, float]  # top, left, height, width in pixels
Maps: TypeAlias = list[tuple[Window, Floats]]  # what the nets say of each window: metres (55, 74)

_RATIO = image.FULL_SIZE[1] / image.FULL_SIZE[0]


class DepthPredictor:
    """Predicts depth maps: `DepthPredictor(coarse, fine)(picture)`.

    Args:
        coarse, fine: the two nets: checkpoints (run by MindSpore), ONNX files as export.py writes them (run by
            onnxruntime; MindSpore is not needed), or functions: RGB (N, 3, 228, 304) in [0, 1] -> log depth
            (N, 1, 55, 74), and (RGB, coarse log depth) -> log depth. By default those of Model/Ckpt, or else the
            ones of this repo.
        batch_size: windows that go through the nets at once.
        flip_average: take the mean of log depth of each window and of its mirror image.

    After predicting with checkpoints, do not fork a process that is to predict as well (multiprocessing's "fork",
    gunicorn's --preload): MindSpore's threads are not in the child, which waits for them for ever. Start the processes
    by "spawn", or fork before the first prediction.

    Raises UserError when a file cannot be used.
    """

    def __init__(self, coarse: Net | StrPath | None = None, fine: Net | StrPath | None = None, batch_size: int = 8,
                 flip_average: bool = False) -> None:
        if coarse is None or fine is None:
            defaults = cli.default_or_shipped_checkpoints()
            coarse, fine = coarse or defaults[0], fine or defaults[1]
        self.sources = coarse, fine
        self.coarse, self.fine = _net(self.sources[0], "coarse"), _net(self.sources[1], "fine")
        if isinstance(self.coarse, _Cell) and isinstance(self.fine, _Cell):
            from src.nets import checkpoint

            checkpoint.warn_of_another_coarse(self.coarse.cell, self.fine.cell)
        self.batch_size, self.flip_average = batch_size, flip_average

    def __call__(self, picture: Picture) -> Floats:
        """Depth of one picture.

        Args:
            picture: RGB as uint8 (H, W, 3), a Pillow image, the path of a picture, or another array that `pixels_of`
                takes.

        Returns:
            float32 (H, W) metres in [0.1, 10], pixel for pixel over the picture.

        Raises image.ImageError naming a file or an array that cannot be used.
        """
        return self.predict([picture])[0]

    def predict(self, pictures: Sequence[Picture], names: Sequence[object] | None = None) -> list[Floats]:
        """The depths (H, W) of several pictures, of any sizes, with as few runs of the nets as their windows allow.

        `names` are what to call them in an error. Raises errors.NotFinite when a prediction is not.
        """
        names = names or [picture if isinstance(picture, str | os.PathLike) else f"picture {number}"
                          for number, picture in enumerate(pictures)]
        loaded = [pixels_of(picture, name) for picture, name in zip(pictures, names, strict=True)]
        return [blended(picture.shape[:2], maps)
                for picture, maps in zip(loaded, self.maps(loaded, names), strict=True)]

    def maps(self, pictures: Sequence[Pixels], names: Sequence[object]) -> list[Maps]:
        """What the nets say of each picture (H, W, 3), for `blended`: a list of (window, metres (55, 74))."""
        for picture, name in zip(pictures, names, strict=True):
            check_ratio(picture.shape[0], picture.shape[1], name)
        places = [(number, place) for number, picture in enumerate(pictures)
                  for place in windows(picture.shape[0], picture.shape[1])]
        found: list[Maps] = [[] for _ in pictures]
        for start in range(0, len(places), self.batch_size):
            part = places[start:start + self.batch_size]
            rgb = np.stack([_view(pictures[number], place) for number, place in part])
            part_names = [names[number] for number, _ in part]

            def predict(rgb: Floats, part_names: Sequence[object] = part_names) -> dict[str, Floats]:
                coarse_log_depth = metrics.finite(self.coarse(rgb), part_names)  # FineNet's ReLU may swallow a NaN
                return {"depth": metrics.finite(self.fine(rgb, coarse_log_depth), part_names)}

            log_depth = (flip_averaged(predict) if self.flip_average else predict)(rgb)["depth"]
            for (number, place), one in zip(part, log_depth, strict=True):
                found[number].append((place, np.exp(one[0]).clip(*metrics.DEPTH_RANGE_M)))
        return found


def pixels_of(picture: Picture, name: object = "picture") -> Pixels:
    """What may be given as a picture, as RGB: uint8 (H, W, 3).

    Args:
        picture: a path; a Pillow image, which EXIF does not turn; or an array (H, W) or (H, W, C), or (C, H, W) where
            it cannot be the other, of 1 channel (grey), 3 (RGB) or 4 (RGB and alpha, which is dropped): uint8, uint16,
            bool, or floating-point numbers from 0 to 1.
        name: what to call it in an error.

    Raises image.ImageError when it is anything else.
    """
    if isinstance(picture, str | os.PathLike):
        return image.load_rgb(picture)
    if isinstance(picture, Image.Image):
        return image.to_rgb(picture)
    expected = "expected (H, W) or (H, W, 3) RGB, of uint8, uint16, or floats from 0 to 1"
    if not isinstance(picture, np.ndarray):
        raise image.ImageError(f"{name}: {type(picture).__name__}: {expected}; or a Pillow image; or a path")
    pixels = picture[..., None] if picture.ndim == 2 else picture
    if pixels.ndim == 3 and pixels.shape[2] not in _CHANNELS and pixels.shape[0] in _CHANNELS:
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.ndim != 3 or pixels.shape[2] not in _CHANNELS or not pixels.size:
        raise image.ImageError(f"{name}: an array of shape {picture.shape}: {expected}")
    rgb = image.to_8_bits(pixels[..., :3])
    if rgb is None:
        raise image.ImageError(f"{name}: {picture.dtype} from {picture.min()} to {picture.max()}: {expected}")
    return np.ascontiguousarray(np.broadcast_to(rgb, (*rgb.shape[:2], 3)))


def from_options(options: argparse.Namespace) -> DepthPredictor:
    """The DepthPredictor of `cli.add_nets`' options."""
    nets = options.coarse_onnx, options.fine_onnx
    if not options.coarse_onnx:
        from src.nets import device

        device.select(options.device_target, options.device_id)
        nets = options.coarse_ckpt_model, options.fine_ckpt_model
    return DepthPredictor(*nets, options.batch_size, options.flip_average)


def _net(net: Net | StrPath, kind: str) -> Net:
    if callable(net):
        return net
    path = Path(net)
    if path.suffix == ".onnx":
        return _onnx_net(path, kind)
    from src.nets import checkpoint

    return _Cell(checkpoint.load_coarse(path) if kind == "coarse" else checkpoint.load_fine(path))


class _Cell:
    """A net of MindSpore as a function of arrays."""

    def __init__(self, cell: Any) -> None:
        self.cell = cell

    def __call__(self, *arrays: Floats) -> Floats:
        import mindspore as ms

        return self.cell(*map(ms.Tensor, arrays)).asnumpy()


def _onnx_net(path: Path, kind: str) -> Net:
    import onnxruntime

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own types share no base class
        raise UserError(f"{path}: not a readable ONNX file") from error
    names = [argument.name for argument in session.get_inputs()]
    expected = ["rgb"] if kind == "coarse" else ["rgb", "coarse_log_depth"]
    if names != expected:
        raise UserError(f"{path}: takes {', '.join(names)}, but the {kind} net takes {', '.join(expected)}: "
                        "expected what export.py writes")
    return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))[0]


def flip_averaged(predict: Predict) -> Predict:
    """`predict`, a function of RGB (N, 3, H, W) to log depth (N, 1, H, W) by name, as the mean over the pictures and
    their mirror images."""
    def both(rgb: Floats) -> dict[str, Floats]:
        mirrored = predict(np.ascontiguousarray(rgb[..., ::-1]))
        return {net: (log_depth + mirrored[net][..., ::-1]) / 2 for net, log_depth in predict(rgb).items()}

    return both


def check_ratio(height: int, width: int, name: object) -> None:
    """Raise image.SizeError naming the picture when it is no picture but a strip."""
    if max(height, width) > MOST_RATIO * min(height, width):
        raise image.SizeError(f"{name}: {height}x{width} (height x width): expected a ratio of at most {MOST_RATIO}:1")


def windows(height: int, width: int) -> list[Window]:
    """The windows of ratio 4:3 that cover a picture: (top, left, height, width) in pixels, fractions included."""
    size = min(height, width / _RATIO), min(width, height * _RATIO)
    along = 1 if width > height * _RATIO else 0
    room = (height, width)[along] - size[along]
    count = int(np.ceil(1 + room / size[along] - MOST_OUTSIDE))
    starts = np.linspace(0, room, count) if count > 1 else [room / 2]
    return [(0.0, start, *size) if along else (start, 0.0, *size) for start in starts]


def _pixels(start: float, length: float) -> slice:
    """The whole pixels of a window along one axis."""
    return slice(round(start), max(round(start + length), round(start) + 1))


def _view(picture: Pixels, place: Window) -> Floats:
    """The part of a picture in a window, as the nets take it."""
    top, left, height, width = place
    return image.network_rgb(picture[_pixels(top, height), _pixels(left, width)])


def _reach(start: float, length: float, pixels: int) -> slice:
    """The pixels of an axis to which a window gives its depth: its own, and what a single window leaves outside."""
    beyond = MOST_OUTSIDE / 2 * length + 1
    return slice(max(int(start - beyond), 0), min(int(np.ceil(start + length + beyond)), pixels))


def blended(size: tuple[int, ...], maps: Maps) -> Floats:
    """float32 metres (H, W) of a picture of this size, from those of its windows (`DepthPredictor.maps`): the nearer to
    its window's border, the less a depth counts."""
    total, weights = np.zeros(size, np.float32), np.zeros(size, np.float32)
    for (top, left, height, width), depth_m in maps:
        rows, columns = (_reach(start, length, pixels)
                         for start, length, pixels in zip((top, left), (height, width), size, strict=True))
        down, across = np.arange(rows.start, rows.stop), np.arange(columns.start, columns.stop)
        resized = (_interpolation(down, top, height, image.CROP_ROWS, 0) @ depth_m
                   @ _interpolation(across, left, width, image.CROP_COLUMNS, 1).T)
        if len(maps) == 1:
            return resized  # there is nothing to blend it with, and it reaches the borders
        weight = np.outer(_inside(down, top, height), _inside(across, left, width)).astype(np.float32)
        total[rows, columns] += weight * resized
        weights[rows, columns] += weight
    return total / weights


def _interpolation(pixels: npt.NDArray[np.int64], start: float, length: float, seen: tuple[int, int],
                   axis: int) -> Floats:
    """Bilinear weights (pixels, cells) with half-pixel centres: from the cells along one axis of a window, of which the
    nets see `seen` of 480 or 640 pixels, to these pixels of the picture. Beyond the outermost cells these are
    continued.
    """
    cells, scale = image.DEPTH_SIZE[axis], length / image.FULL_SIZE[axis]
    first, last = start + seen[0] * scale, start + seen[1] * scale
    position = ((pixels + 0.5 - first) / (last - first) * cells - 0.5).clip(0, cells - 1)
    low = np.minimum(position.astype(int), cells - 2)
    weights = np.zeros((len(pixels), cells), np.float32)
    weights[np.arange(len(pixels)), low] = low + 1 - position
    weights[np.arange(len(pixels)), low + 1] = position - low
    return weights


def _inside(pixels: npt.NDArray[np.int64], start: float, length: float) -> Doubles:
    """How far inside a window these pixels of an axis are, in pixels: never quite 0."""
    centre = pixels + 0.5
    return np.clip(np.minimum(centre - start, start + length - centre), 0, None) + 1e-6
