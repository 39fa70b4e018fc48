"""Scores predictions and reports the scores. Must not import MindSpore, because postprocess.py uses it."""

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from src import metrics
from src.base.arrays import Doubles, Floats, Pixels, Predict
from src.base.cli import progress
from src.base.errors import UserError
from src.base.files import StrPath, replacing, write_text
from src.data import image
from src.data.listing import Pair, names_digest
from src.data.plain import load_test_pair
from src.data_loader import keep_freed_memory, test_batches
from src.scoring.baselines import Baselines

DEPTH_EDGES_M = np.arange(0, 10.5, 0.5)
JOINT_EDGES_M = np.linspace(0, 10, 51)
logger = logging.getLogger(__name__)

SCALE_COLUMN = "r(median)"
PanelRow: TypeAlias = tuple[str, Pixels, Floats, dict[str, Floats]]  # a row of `visual.panels`


@dataclass
class Scores:
    """The metrics of a net for each image, and the sums for the pooled RMSE."""

    protocol: str
    names: list[str] = field(default_factory=list)
    per_image: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in metrics.METRICS})
    squared_error: float = 0.0
    pixels: int = 0
    # (predicted, true) median of each image with a measured pixel
    medians_m: list[tuple[float, float]] = field(default_factory=list)

    def add(self, names: Sequence[str], log_depth: Floats, depth_m: Floats) -> None:
        """Score a batch.

        Args:
            names: names of the N images.
            log_depth, depth_m: prediction and target, as in `metrics.evaluate`.
        """
        values = metrics.evaluate(log_depth, depth_m, self.protocol)
        self.names += names
        for metric, column in self.per_image.items():
            column.extend(values[metric].tolist())
        for prediction, target in zip(log_depth, depth_m, strict=True):
            prediction_m, target_m = metrics.valid_pixels(prediction, target, self.protocol)
            self.squared_error += float(((prediction_m - target_m) ** 2).sum())
            self.pixels += target_m.size
            if target_m.size:
                self.medians_m.append((float(np.median(prediction_m)), float(np.median(target_m))))

    def means(self) -> dict[str, float]:
        """Return the mean over images of each metric. Raises CheckFailed if no image has a measured pixel."""
        return metrics.means(self.per_image)

    def scale_correlation(self) -> float | None:
        """Return Pearson's correlation over images of predicted and true median depth; None if either is constant."""
        predicted, true = np.array(self.medians_m).T
        if min(np.ptp(predicted), np.ptp(true)) < 1e-9:
            return None
        return float(np.corrcoef(predicted, true)[0, 1])

    def pooled_rmse(self) -> float:
        """Return the RMSE in metres over the pixels of all images together."""
        return float(np.sqrt(self.squared_error / self.pixels))


@dataclass
class Details:
    """Statistics of a net for the report, on the 55x74 grid."""

    # (sum of relative errors, count) of the measured cells, by position and by bin of true depth.
    cells: Doubles = field(default_factory=lambda: np.zeros((2, *image.DEPTH_SIZE)))
    depths: Doubles = field(default_factory=lambda: np.zeros((2, len(DEPTH_EDGES_M) - 1)))
    # Counts of cells by (true, predicted) depth.
    joint: Doubles = field(default_factory=lambda: np.zeros(2 * [len(JOINT_EDGES_M) - 1]))
    medians_m: list[tuple[float, float]] = field(default_factory=list)  # (predicted, true) of each image

    def add(self, log_depth: Floats, depth_m: Floats) -> None:
        """Add a batch of log depth and target metres, both (N, 1, 55, 74)."""
        predictions_m = np.exp(log_depth[:, 0]).clip(*metrics.DEPTH_RANGE_M)
        for prediction_m, target_m in zip(predictions_m, depth_m[:, 0], strict=True):
            measured = target_m > 0
            if not measured.any():
                continue
            target_m = np.where(measured, target_m.clip(*metrics.DEPTH_RANGE_M), 1)
            error = np.abs(prediction_m - target_m) / target_m * measured
            self.cells += error, measured
            self.depths += [
                np.histogram(target_m[measured], DEPTH_EDGES_M, weights=weights)[0]
                for weights in (error[measured], None)
            ]
            bins: Any = 2 * [JOINT_EDGES_M]
            self.joint += np.histogram2d(target_m[measured], prediction_m[measured], bins)[0]
            self.medians_m.append((float(np.median(prediction_m[measured])), float(np.median(target_m[measured]))))

    def error_by_cell(self) -> Doubles:
        """Return the mean relative error (55, 74), NaN where nothing was measured."""
        return self.cells[0] / np.where(self.cells[1], self.cells[1], np.nan)

    def error_by_depth(self) -> tuple[Doubles, Doubles, Doubles]:
        """Return (edges in metres, mean relative error, share of the cells) by bins of true depth."""
        errors, counts = self.depths
        return DEPTH_EDGES_M, errors / np.where(counts, counts, np.nan), counts / counts.sum()

    def predicted_over_true(self) -> tuple[Doubles, Doubles, Doubles]:
        """Return (edges in metres, counts of cells by (true, predicted) bin, median prediction of each true bin, NaN if
        empty)."""
        below = self.joint.cumsum(axis=1)
        median_bin = (below >= below[:, -1:] / 2).argmax(axis=1)
        centres = (JOINT_EDGES_M[:-1] + JOINT_EDGES_M[1:]) / 2
        return JOINT_EDGES_M, self.joint, np.where(below[:, -1] > 0, centres[median_bin], np.nan)


def targets(full_depth_m: Sequence[Floats], protocol: str, pairs: Sequence[Pair]) -> Floats:
    """Return the targets that a protocol scores against.

    Args:
        full_depth_m: N full depth maps (H, W) in metres.
        protocol: one of metrics.PROTOCOLS.
        pairs: the pairs of these depth maps, for error messages.

    Returns:
        metres, (N, 1, 55, 74) for "depthnet", (N, 1, 480, 640) for "eigen".

    Raises UserError if a map does not have the size that "eigen" needs.
    """
    if protocol == "depthnet":
        return np.stack([image.network_depth(depth_m) for depth_m in full_depth_m])
    for depth_m, pair in zip(full_depth_m, pairs, strict=True):
        if depth_m.shape != image.FULL_SIZE:
            raise UserError(
                f"{pair.depth}: {depth_m.shape[0]}x{depth_m.shape[1]}, but protocol eigen is defined on 480x640"
            )
    return np.stack(full_depth_m)[:, None]


def score(
    pairs: Sequence[Pair],
    predict: Predict,
    protocol: str,
    batch_size: int,
    workers: int,
    details: dict[str, Details] | None = None,
    baselines: Baselines | None = None,
) -> dict[str, Scores]:
    """Score the test pairs.

    Args:
        pairs: the test pairs.
        predict: a nets.Nets, or a function with the same arguments and result.
        protocol: one of metrics.PROTOCOLS.
        batch_size: pictures predicted at once.
        workers: decoding threads.
        details: a dict that is filled with Details by name of net or baseline, or None.
        baselines: the baselines to score too, or None.

    Returns:
        Scores by name of net or baseline.

    Raises errors.NotFinite naming a picture whose prediction is NaN or infinite, image.ImageError naming a bad file.
    """
    scores: dict[str, Scores] = {}
    keep_freed_memory()
    with progress(total=len(pairs), desc="scoring", unit="image") as bar:
        for chunk, rgb, full_depth_m in test_batches(pairs, batch_size, workers):
            depth_m = targets(full_depth_m, protocol, chunk)
            grid_m = depth_m if protocol == "depthnet" else targets(full_depth_m, "depthnet", chunk)
            log_depths = predict(rgb, [pair.rgb for pair in chunk])
            if baselines:
                log_depths = {**baselines.before(rgb), **log_depths, **baselines.after(grid_m)}
            for net, log_depth in log_depths.items():
                scores.setdefault(net, Scores(protocol)).add([pair.name for pair in chunk], log_depth, depth_m)
                if details is not None:
                    details.setdefault(net, Details()).add(log_depth, grid_m)
            bar.update(len(chunk))
    return scores


def table(scores: Mapping[str, Scores]) -> str:
    """Return the means of every net as a text table. The last column is `Scores.scale_correlation`."""
    from tabulate import tabulate  # not installed on a 310 host

    rows = [[net, *of_net.means().values(), of_net.scale_correlation()] for net, of_net in scores.items()]
    return tabulate(rows, ["", *metrics.METRICS, SCALE_COLUMN], floatfmt=".4f")


def final_lines(scores: Mapping[str, Scores]) -> str:
    """Return the final lines of an evaluation, with the metric names that users' scripts search for."""
    return "\n".join(metrics.final_line(net, scores[net].means()) for net in ("CoarseNet", "FineNet"))


def panel_rows(pairs: Sequence[Pair], scores: Scores, predict: Predict, each: int = 2) -> list[PanelRow]:
    """Return rows for `visual.panels` of the best, median and worst images by abs_rel.

    Args:
        pairs: the test pairs.
        scores: scores of a net on these pairs; they give the order.
        predict: as in `score`.
        each: largest number of images in each of the three groups.
    """
    abs_rel = np.array(scores.per_image["abs_rel"])
    order = np.argsort(abs_rel)[: np.count_nonzero(~np.isnan(abs_rel))]  # drops images without a measured pixel
    middle = len(order) // 2 - each // 2
    groups = {"best": order[:each], "median": order[middle : middle + each], "worst": order[-each:]}
    rows, used = [], set()
    for label, indices in groups.items():
        for index in (int(i) for i in indices if i not in used):
            used.add(index)
            title = f"{label}: {pairs[index].name}\nabs_rel {abs_rel[index]:.3f}"
            rows.append(panel_row(title, pairs[index], predict))
    return rows


def panel_row(title: str, pair: Pair, predict: Predict) -> PanelRow:
    """Return the row of `visual.panels` of a test pair. `predict`: as in `score`."""
    rgb, full_depth_m = load_test_pair(pair)
    predictions_m = {net: np.exp(log_depth[0, 0]) for net, log_depth in predict(rgb[None], [pair.rgb]).items()}
    return title, image.load_rgb(pair.rgb), image.network_depth(full_depth_m)[0], predictions_m


def data_facts(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return facts that identify a set of test pairs in any folder: its size, and a digest of file names and sizes."""
    facts = [f"{pair.name} {pair.rgb.stat().st_size} {pair.depth.stat().st_size}" for pair in pairs]
    return {"pairs": len(pairs), "fingerprint": names_digest(facts)}


def report(
    scores: Mapping[str, Scores],
    checkpoints: Mapping[str, str],
    versions: Mapping[str, str],
    data: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of metrics.json. Arguments as in `write_report`."""
    first = next(iter(scores.values()))
    return {
        "protocol": first.protocol,
        **({"data": data} if data else {}),
        "images": len(first.names),
        "pixels": first.pixels,
        "checkpoints": checkpoints,
        "versions": versions,
        "metrics": {
            net: {
                **of_net.means(),
                "scale_correlation": of_net.scale_correlation(),
                "rmse_mean_over_images": of_net.means()["rmse"],
                "rmse_pooled_over_pixels": of_net.pooled_rmse(),
            }
            for net, of_net in scores.items()
        },
    }


def write_report(
    folder: StrPath,
    scores: Mapping[str, Scores],
    checkpoints: Mapping[str, str],
    versions: Mapping[str, str],
    data: Mapping[str, Any] | None = None,
) -> None:
    """Write metrics.json and per_image.csv into `folder`.

    Args:
        folder: an existing folder.
        scores: by name of net.
        checkpoints, versions, data: written into metrics.json as they are.
    """
    folder = Path(folder)
    text = json.dumps(report(scores, checkpoints, versions, data), indent=2, allow_nan=False)
    write_text(folder / "metrics.json", text + "\n")
    with replacing(folder / "per_image.csv") as file:
        writer = csv.writer(file)
        writer.writerow(["net", "image", *metrics.METRICS])
        for net, of_net in scores.items():
            for row in zip(of_net.names, *of_net.per_image.values(), strict=True):
                writer.writerow([net, *("" if value != value else value for value in row)])
