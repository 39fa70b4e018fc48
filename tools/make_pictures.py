"""Make the figures of the documents from a NYU folder and two trained nets: predictions beside the true depth, from the
best to the worst, and a point cloud of the best prediction."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.base import cli
from src.base.files import writable_folder
from src.data import image
from src.data.listing import Pair, list_test
from src.scoring import visual

# isort: split
import cv2  # after src, which drops the variables that OpenCV reads at its import

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from src.prediction.predict import DepthPredictor

COLUMNS = 6


def from_best_to_worst(pairs: Sequence[Pair], predictor: DepthPredictor) -> list[tuple[Pair, float]]:
    """Return all pairs as (pair, abs_rel over the full picture), with the lowest abs_rel first."""
    errors = []
    for pair in pairs:
        true_m = image.load_test_depth(pair.depth)
        measured = true_m > 0
        errors.append(float((np.abs(predictor(pair.rgb) - true_m)[measured] / true_m[measured]).mean()))
    return sorted(zip(pairs, errors, strict=True), key=lambda ranked: ranked[1])


def columns(ranked: Sequence[tuple[Pair, float]], predictor: DepthPredictor) -> Figure:
    """Draw a column for each (pair, abs_rel): picture, true depth and predicted depth, with common colours."""
    figure, axes = visual.subplots(3, len(ranked), 2 * len(ranked), 4.7)
    true_maps = [image.load_test_depth(pair.depth) for pair, _ in ranked]
    deepest = np.ceil(np.percentile(np.stack(true_maps), 98))
    for column, (pair, error), true_m in zip(axes.T, ranked, true_maps, strict=True):
        rgb = image.load_rgb(pair.rgb)
        column[0].imshow(cv2.resize(rgb, (320, 240), interpolation=cv2.INTER_AREA))
        column[0].set_title(f"abs_rel {error:.2f}", fontsize=9)
        for axis, depth_m in zip(column[1:], (np.where(true_m > 0, true_m, np.nan), predictor(rgb)), strict=True):
            drawn = axis.imshow(depth_m[::2, ::2], vmin=0, vmax=deepest, cmap="turbo")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for axis, label in zip(axes[:, 0], ("picture", "true depth", "predicted"), strict=True):
        axis.set_ylabel(label)
    figure.colorbar(drawn, ax=axes[1:].ravel().tolist(), label="m")
    return figure


def clouds(pair: Pair, predictor: DepthPredictor) -> Figure:
    """Draw the true and the predicted point cloud of a pair, in perspective and from above."""
    from src.prediction.pointcloud import Intrinsics, points

    rgb, true_m = image.load_rgb(pair.rgb), image.load_test_depth(pair.depth)
    figure = visual.new_figure(8, 6)
    from_above = None
    for column, (title, depth_m) in enumerate((("true depth", true_m), ("predicted depth", predictor(rgb)))):
        cloud = points(depth_m, Intrinsics.kinect(*depth_m.shape)).reshape(*depth_m.shape, 3)[::6, ::6].reshape(-1, 3)
        colours = rgb[::6, ::6].reshape(-1, 3) / 255
        axis = figure.add_subplot(2, 2, column + 1, projection="3d")
        axis.scatter(cloud[:, 0], cloud[:, 2], -cloud[:, 1], c=colours, s=4)
        axis.view_init(20, -70)
        axis.locator_params(nbins=4)
        axis.tick_params(labelsize=7)
        axis.set_box_aspect(np.ptp(cloud[:, [0, 2, 1]], axis=0))
        axis.set(title=title)
        from_above = axis = figure.add_subplot(2, 2, column + 3, sharex=from_above, sharey=from_above)
        axis.scatter(cloud[:, 0], cloud[:, 2], c=colours, s=2)
        axis.set(xlabel="right, m", ylabel="forward, m", aspect="equal", title="from above")
    return figure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("data", type=Path, help="the NYU folder")
    parser.add_argument("--coarse_ckpt_model", type=Path, default=cli.SHIPPED["CoarseNet"])
    parser.add_argument("--fine_ckpt_model", type=Path, default=cli.SHIPPED["FineNet"])
    parser.add_argument("--output_dir", type=Path, default=Path("docs"))
    options = parser.parse_args()
    pairs = list_test(options.data)
    from src.nets import device
    from src.prediction.predict import DepthPredictor

    device.select("CPU")
    predictor = DepthPredictor(options.coarse_ckpt_model, options.fine_ckpt_model)
    writable_folder(options.output_dir)
    ranked = from_best_to_worst(pairs, predictor)
    chosen = [ranked[index] for index in np.linspace(0, len(ranked) - 1, min(COLUMNS, len(ranked))).round().astype(int)]
    visual.save_figure(columns(chosen, predictor), options.output_dir / "predictions.png")
    visual.save_figure(clouds(ranked[0][0], predictor), options.output_dir / "pointcloud.png")
    logging.info("predictions.png and pointcloud.png in %s", options.output_dir)
    return 0


if __name__ == "__main__":
    cli.run(main)
