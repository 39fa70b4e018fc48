"""Predicts the depth map of a picture of any size.

The nets see the middle of a 480x640 picture (`src.data.image`). A picture of another size or aspect ratio is covered
by 4:3 windows, each as large as possible, evenly spaced along the longer side. Depths of overlapping windows are
blended. The nets do not see the outermost 2.5 % of a window: these pixels get the depth of the nearest cell.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from src import metrics
from src.base.arrays import Array, Doubles, Floats, Pixels
from src.base.files import StrPath
from src.data import image
from src.nets.nets import Net, Nets, files_from_options

# One centred window is enough if it leaves at most this share of the longer side outside.
MOST_OUTSIDE = 0.05
# Largest accepted aspect ratio. Every window is predicted, so a narrow strip would need very many.
MOST_RATIO = 50
_CHANNELS = (1, 3, 4)
Picture: TypeAlias = Array | Image.Image | StrPath
Window: TypeAlias = tuple[float, float, float, float]  # top, left, height, width in pixels
Maps: TypeAlias = list[tuple[Window, Mapping[str, Floats]]]  # each window with metres (55, 74) by name of the net

_RATIO = image.FULL_SIZE[1] / image.FULL_SIZE[0]


class DepthPredictor:
    """Predicts depth maps: `DepthPredictor(coarse, fine)(picture)`.

    Args:
        coarse, fine: the two nets, as `Nets` takes them: checkpoints, ONNX files (MindSpore is not needed), or
            functions. Defaults: the checkpoints in Model/Ckpt, or those in weights/ of this repo.
        batch_size: number of windows that the nets predict at once.
        flip_average: average the log depth of each window with that of its mirror image.

    A process that has predicted with checkpoints must not fork another that predicts too (multiprocessing's "fork",
    gunicorn's --preload): the child has none of MindSpore's threads and waits for them for ever. Start processes with
    "spawn", or fork before the first prediction.

    Raises UserError if a file cannot be used.
    """

    def __init__(
        self,
        coarse: Net | StrPath | None = None,
        fine: Net | StrPath | None = None,
        batch_size: int = 8,
        flip_average: bool = False,
    ) -> None:
        self.nets, self.batch_size = Nets(coarse, fine, flip_average), batch_size

    def __call__(self, picture: Picture) -> Floats:
        """Predict the depth of one picture.

        Args:
            picture: RGB as uint8 (H, W, 3), a Pillow image, the path of a picture, or another array that `pixels_of`
                takes.

        Returns:
            float32 (H, W) metres in [0.1, 10], one value per pixel of the picture.

        Raises image.ImageError naming a file or an array that cannot be used.
        """
        return self.predict([picture])[0]

    def predict(self, pictures: Sequence[Picture], names: Sequence[object] | None = None) -> list[Floats]:
        """Predict the depth of several pictures, of any sizes, in as few batches as their windows allow.

        Args:
            pictures: each as `__call__` takes it.
            names: names of the pictures for error messages. Default: paths, or numbers.

        Returns:
            A list of float32 (H, W) metres in [0.1, 10].

        Raises image.ImageError naming a picture that cannot be used, errors.NotFinite naming a picture whose
        prediction is NaN or infinite.
        """
        names = names or [
            picture if isinstance(picture, str | os.PathLike) else f"picture {number}"
            for number, picture in enumerate(pictures)
        ]
        loaded = [pixels_of(picture, name) for picture, name in zip(pictures, names, strict=True)]
        return [
            blended(picture.shape[:2], maps) for picture, maps in zip(loaded, self.maps(loaded, names), strict=True)
        ]

    def maps(self, pictures: Sequence[Pixels], names: Sequence[object]) -> list[Maps]:
        """Predict all windows of each picture, for `blended`.

        Args:
            pictures: each uint8 RGB (H, W, 3).
            names: names of the pictures for error messages.

        Returns:
            For each picture a list of (window, {"CoarseNet": metres (55, 74), "FineNet": metres (55, 74)}).
        """
        for picture, name in zip(pictures, names, strict=True):
            check_ratio(picture.shape[0], picture.shape[1], name)
        numbered = [
            (number, window)
            for number, picture in enumerate(pictures)
            for window in windows(picture.shape[0], picture.shape[1])
        ]
        maps: list[Maps] = [[] for _ in pictures]
        for start in range(0, len(numbered), self.batch_size):
            batch = numbered[start : start + self.batch_size]
            log_depth = self.nets(
                np.stack([_view(pictures[number], window) for number, window in batch]),
                [names[number] for number, _ in batch],
            )
            depth_m = {net: np.exp(values[:, 0]).clip(*metrics.DEPTH_RANGE_M) for net, values in log_depth.items()}
            for index, (number, window) in enumerate(batch):
                maps[number].append((window, {net: values[index] for net, values in depth_m.items()}))
        return maps


def pixels_of(picture: Picture, name: object = "picture") -> Pixels:
    """Convert a picture to RGB.

    Args:
        picture: a path; a Pillow image (not rotated by its EXIF); or an array (H, W), (H, W, C), or (C, H, W) if it
            cannot be (H, W, C), with 1 channel (grey), 3 (RGB) or 4 (RGB and alpha, which is dropped), of uint8,
            uint16, bool, or floats in [0, 1].
        name: name of the picture for error messages.

    Returns:
        uint8 RGB (H, W, 3).

    Raises image.ImageError for anything else.
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
    """Return the DepthPredictor that the options of `cli.add_nets` ask for, on their device."""
    return DepthPredictor(*files_from_options(options), options.batch_size, options.flip_average)


def check_ratio(height: int, width: int, name: object) -> None:
    """Raise image.SizeError naming the picture if its aspect ratio exceeds MOST_RATIO."""
    if max(height, width) > MOST_RATIO * min(height, width):
        raise image.SizeError(f"{name}: {height}x{width} (height x width): expected a ratio of at most {MOST_RATIO}:1")


def windows(height: int, width: int) -> list[Window]:
    """Return the 4:3 windows that cover a picture: (top, left, height, width) in pixels, not rounded."""
    size = min(height, width / _RATIO), min(width, height * _RATIO)
    axis = 1 if width > height * _RATIO else 0
    last_start = (height, width)[axis] - size[axis]
    count = int(np.ceil(1 + last_start / size[axis] - MOST_OUTSIDE))
    starts = np.linspace(0, last_start, count) if count > 1 else [last_start / 2]
    return [(0.0, start, *size) if axis else (start, 0.0, *size) for start in starts]


def _pixels(start: float, length: float) -> slice:
    """Round a window to whole pixels along one axis; at least one pixel."""
    return slice(round(start), max(round(start + length), round(start) + 1))


def _view(picture: Pixels, window: Window) -> Floats:
    """Cut a window out of a picture and resize it for the nets: RGB (3, 228, 304) in [0, 1]."""
    top, left, height, width = window
    return image.network_rgb(picture[_pixels(top, height), _pixels(left, width)])


def _reach(start: float, length: float, pixels: int) -> slice:
    """Return the pixels along one axis that get depth from a window: those inside it, and at each end those outside it
    up to half of MOST_OUTSIDE. `pixels`: number of pixels of the picture along this axis."""
    margin = MOST_OUTSIDE / 2 * length + 1
    return slice(max(int(start - margin), 0), min(int(np.ceil(start + length + margin)), pixels))


def blended(size: tuple[int, ...], maps: Maps, net: str = "FineNet") -> Floats:
    """Blend the depths of a picture's windows. The weight of a depth falls towards the border of its window.

    Args:
        size: (H, W) of the picture.
        maps: the picture's windows and depths, from `DepthPredictor.maps`.
        net: the net whose depth is used, "CoarseNet" or "FineNet".

    Returns:
        float32 (H, W) metres.
    """
    total, weights = np.zeros(size, np.float32), np.zeros(size, np.float32)
    for (top, left, height, width), by_net in maps:
        rows, columns = (
            _reach(start, length, pixels)
            for start, length, pixels in zip((top, left), (height, width), size, strict=True)
        )
        down, across = np.arange(rows.start, rows.stop), np.arange(columns.start, columns.stop)
        resized = (
            _interpolation(down, top, height, image.CROP_ROWS, 0)
            @ by_net[net]
            @ _interpolation(across, left, width, image.CROP_COLUMNS, 1).T
        )
        if len(maps) == 1:
            return resized  # a single window covers the whole picture
        weight = np.outer(_inside(down, top, height), _inside(across, left, width)).astype(np.float32)
        total[rows, columns] += weight * resized
        weights[rows, columns] += weight
    return total / weights


def _interpolation(
    pixels: npt.NDArray[np.int64], start: float, length: float, seen: tuple[int, int], axis: int
) -> Floats:
    """Return bilinear weights (pixels, cells), with half-pixel centres, from a window's depth cells to picture pixels
    along one axis. Pixels beyond the outermost cells take the value of the nearest cell.

    Args:
        pixels: coordinates of the pixels in the picture.
        start, length: position and size of the window in pixels.
        seen: the first and last pixel that the nets see of 480 rows or 640 columns.
        axis: 0 for rows, 1 for columns.
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
    """Return the distance of each pixel from the nearer end of a window along one axis, in pixels, at least 1e-6."""
    centre = pixels + 0.5
    return np.clip(np.minimum(centre - start, start + length - centre), 0, None) + 1e-6
