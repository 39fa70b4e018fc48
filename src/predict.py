"""From any picture to its depth map: the one function behind every prediction that a user sees.

The nets take the middle of a 480x640 picture (`src.image`). A picture of another size or ratio is covered by windows of
that ratio, as large as they fit and evenly spread along the longer side; where windows overlap, their depths are
blended. The nets do not see the outermost 2.5 % of a window: there the depth of the nearest cell is continued.
"""

from pathlib import Path

import cv2
import numpy as np

from src import image
from src.errors import UserError
from src.metrics import DEPTH_RANGE_M

# A single window, in the middle, does for a ratio that is only so much from 4:3.
MOST_OUTSIDE = 0.05
_RATIO = image.FULL_SIZE[1] / image.FULL_SIZE[0]


class DepthPredictor:
    """Predicts depth maps: `DepthPredictor(coarse, fine)(picture)`.

    Args:
        coarse, fine: the two nets: checkpoints (run by MindSpore), ONNX files as export.py writes them (run by
            onnxruntime; MindSpore is not needed), or functions: RGB (N, 3, 228, 304) in [0, 1] -> log depth
            (N, 1, 55, 74), and (RGB, coarse log depth) -> log depth.
        batch_size: windows that go through the nets at once.

    Raises UserError when a file cannot be used.
    """

    def __init__(self, coarse="Model/Ckpt/FinalCoarseNet.ckpt", fine="Model/Ckpt/FinalFineNet.ckpt", batch_size=8):
        self.coarse, self.fine = _net(coarse, "coarse"), _net(fine, "fine")
        self.batch_size = batch_size

    def __call__(self, picture):
        """Depth of one picture.

        Args:
            picture: uint8 (H, W, 3) RGB, or the path of a picture.

        Returns:
            float32 (H, W) metres in [0.1, 10], pixel for pixel over the picture.

        Raises image.ImageError naming a file that cannot be used.
        """
        return self.predict([picture])[0]

    def predict(self, pictures):
        """The depths (H, W) of several pictures, of any sizes, with as few runs of the nets as their windows allow."""
        pictures = [picture if isinstance(picture, np.ndarray) else image.load_rgb(picture) for picture in pictures]
        places = [windows(*picture.shape[:2]) for picture in pictures]
        views = [_view(picture, place) for picture, picture_places in zip(pictures, places, strict=True)
                 for place in picture_places]
        depths_m = iter(self._depths_m(views))
        return [_assemble(picture.shape[:2], [(place, next(depths_m)) for place in picture_places])
                for picture, picture_places in zip(pictures, places, strict=True)]

    def _depths_m(self, views):
        results = []
        for start in range(0, len(views), self.batch_size):
            rgb = np.stack(views[start:start + self.batch_size])
            results += list(np.exp(self.fine(rgb, self.coarse(rgb))[:, 0]).clip(*DEPTH_RANGE_M))
        return results


def _net(net, kind):
    if callable(net):
        return net
    path = Path(net)
    if path.suffix == ".onnx":
        return _onnx_net(path, kind)
    import mindspore as ms

    from src import checkpoint

    cell = checkpoint.load_coarse(path) if kind == "coarse" else checkpoint.load_fine(path)
    return lambda *arrays: cell(*map(ms.Tensor, arrays)).asnumpy()


def _onnx_net(path, kind):
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


def windows(height, width):
    """The windows of ratio 4:3 that cover a picture: (top, left, height, width) in pixels, fractions included."""
    size = min(height, width / _RATIO), min(width, height * _RATIO)
    along = 1 if width > height * _RATIO else 0
    room = (height, width)[along] - size[along]
    count = int(np.ceil(1 + room / size[along] - MOST_OUTSIDE))
    starts = np.linspace(0, room, count) if count > 1 else [room / 2]
    return [(0.0, start, *size) if along else (start, 0.0, *size) for start in starts]


def _view(picture, place):
    """The part of a picture in a window, as the nets take it. Pixels are averaged where they are too many."""
    top, left, height, width = place
    rows, columns = (slice(round(start), max(round(start + length), round(start) + 1))
                     for start, length in ((top, height), (left, width)))
    window = picture[rows, columns]
    if window.shape[:2] != image.FULL_SIZE:
        shrink = window.shape[0] > image.FULL_SIZE[0]
        window = cv2.resize(window, image.FULL_SIZE[::-1], interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR)
    return image.network_rgb(window)


def _assemble(size, parts):
    """Put the depths (55, 74) of windows, in metres, back over a picture of `size`. float32 metres (H, W)."""
    total, weights = np.zeros(size, np.float32), np.zeros(size, np.float32)
    for (top, left, height, width), depth_m in parts:
        rows = _interpolation(size[0], top, height, image.CROP_ROWS, 0)
        columns = _interpolation(size[1], left, width, image.CROP_COLUMNS, 1)
        weight = np.outer(_inside(size[0], top, height), _inside(size[1], left, width)).astype(np.float32)
        total += weight * (rows @ depth_m @ columns.T)
        weights += weight
    return total / weights


def _interpolation(pixels, start, length, seen, axis):
    """Bilinear weights (pixels, cells) with half-pixel centres: from the cells along one axis of a window, of which the
    nets see `seen` of 480 or 640 pixels, to the pixels of the picture. Beyond the outermost cells these are continued.
    """
    cells, scale = image.DEPTH_SIZE[axis], length / image.FULL_SIZE[axis]
    first, last = start + seen[0] * scale, start + seen[1] * scale
    position = ((np.arange(pixels) + 0.5 - first) / (last - first) * cells - 0.5).clip(0, cells - 1)
    low = np.minimum(position.astype(int), cells - 2)
    weights = np.zeros((pixels, cells), np.float32)
    weights[np.arange(pixels), low] = low + 1 - position
    weights[np.arange(pixels), low + 1] = position - low
    return weights


def _inside(pixels, start, length):
    """How far inside a window each pixel of an axis is, in pixels: 0 outside, and never quite 0 within."""
    centre = np.arange(pixels) + 0.5
    return np.clip(np.minimum(centre - start, start + length - centre), 0, None) + 1e-6
