"""Score predictions, and report the scores. No MindSpore here: postprocess.py scores with the same code."""

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
    """The metrics of one net, image by image, and what the pooled RMSE needs."""

    protocol: str
    names: list[str] = field(default_factory=list)
    per_image: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in metrics.METRICS})
    squared_error: float = 0.0
    pixels: int = 0
    # (predicted, true) of each image with a measured pixel
    medians_m: list[tuple[float, float]] = field(default_factory=list)

    def add(self, names: Sequence[str], log_depth: Floats, depth_m: Floats) -> None:
        """Score a batch: (N, 1, 55, 74) log depth against targets as `metrics.evaluate` takes them."""
        values = metrics.evaluate(log_depth, depth_m, self.protocol)
        self.names += names
        for metric, column in self.per_image.items():
            column.extend(values[metric].tolist())
        for one_log_depth, one_depth_m in zip(log_depth, depth_m, strict=True):
            prediction_m, target_m = metrics.valid_pixels(one_log_depth, one_depth_m, self.protocol)
            self.squared_error += float(((prediction_m - target_m) ** 2).sum())
            self.pixels += target_m.size
            if target_m.size:
                self.medians_m.append((float(np.median(prediction_m)), float(np.median(target_m))))

    def means(self) -> dict[str, float]:
        """The mean over images of each metric. Raises CheckFailed when no image has a measured pixel."""
        return metrics.means(self.per_image)

    def scale_correlation(self) -> float | None:
        """How far the predicted median depth follows the true one over the images: Pearson's correlation; None where
        one of them does not vary."""
        predicted, true = np.array(self.medians_m).T
        if min(np.ptp(predicted), np.ptp(true)) < 1e-9:
            return None
        return float(np.corrcoef(predicted, true)[0, 1])

    def pooled_rmse(self) -> float:
        """RMSE in metres over the pixels of all images at once."""
        return float(np.sqrt(self.squared_error / self.pixels))


@dataclass
class Details:
    """What the report shows of one net beside its metrics, on the 55x74 grid."""

    cells: Doubles = field(default_factory=lambda: np.zeros((2, *image.DEPTH_SIZE)))  # sum of errors, count
    depths: Doubles = field(default_factory=lambda: np.zeros((2, len(DEPTH_EDGES_M) - 1)))
    # Cells, true x predicted.
    joint: Doubles = field(default_factory=lambda: np.zeros(2 * [len(JOINT_EDGES_M) - 1]))
    medians_m: list[tuple[float, float]] = field(default_factory=list)  # (predicted, true) of each image

    def add(self, log_depth: Floats, depth_m: Floats) -> None:
        """Take in a batch: (N, 1, 55, 74) log depth and target metres."""
        prediction_m = np.exp(log_depth[:, 0]).clip(*metrics.DEPTH_RANGE_M)
        for one_m, target_m in zip(prediction_m, depth_m[:, 0], strict=True):
            measured = target_m > 0
            if not measured.any():
                continue
            target_m = np.where(measured, target_m.clip(*metrics.DEPTH_RANGE_M), 1)
            error = np.abs(one_m - target_m) / target_m * measured
            self.cells += error, measured
            self.depths += [np.histogram(target_m[measured], DEPTH_EDGES_M, weights=weights)[0]
                            for weights in (error[measured], None)]
            bins: Any = 2 * [JOINT_EDGES_M]
            self.joint += np.histogram2d(target_m[measured], one_m[measured], bins)[0]
            self.medians_m.append((float(np.median(one_m[measured])), float(np.median(target_m[measured]))))

    def error_by_cell(self) -> Doubles:
        """The mean relative error (55, 74); NaN where nothing was measured."""
        return self.cells[0] / np.where(self.cells[1], self.cells[1], np.nan)

    def error_by_depth(self) -> tuple[Doubles, Doubles, Doubles]:
        """(edges in metres, mean relative error, share of the cells) of bins of true depth."""
        errors, counts = self.depths
        return DEPTH_EDGES_M, errors / np.where(counts, counts, np.nan), counts / counts.sum()

    def predicted_over_true(self) -> tuple[Doubles, Doubles, Doubles]:
        """(edges in metres, counts (true, predicted) of cells, the median prediction in each bin of true depth, NaN
        where there is none)."""
        below = self.joint.cumsum(axis=1)
        place = (below >= below[:, -1:] / 2).argmax(axis=1)
        centres = (JOINT_EDGES_M[:-1] + JOINT_EDGES_M[1:]) / 2
        return JOINT_EDGES_M, self.joint, np.where(below[:, -1] > 0, centres[place], np.nan)


def targets(full_depth_m: Sequence[Floats], protocol: str, pairs: Sequence[Pair]) -> Floats:
    """What `protocol` scores against: the 55x74 grid, or the full picture. (N, 1, H, W) metres."""
    if protocol == "depthnet":
        return np.stack([image.network_depth(depth_m) for depth_m in full_depth_m])
    for depth_m, pair in zip(full_depth_m, pairs, strict=True):
        if depth_m.shape != image.FULL_SIZE:
            raise UserError(f"{pair.depth}: {depth_m.shape[0]}x{depth_m.shape[1]}, "
                            "but protocol eigen is defined on 480x640")
    return np.stack(full_depth_m)[:, None]


def score(pairs: Sequence[Pair], predict: Predict, protocol: str, batch_size: int, workers: int,
          details: dict[str, Details] | None = None, baselines: Baselines | None = None) -> dict[str, Scores]:
    """Score the test pairs: a dict of net name to Scores.

    Args:
        pairs: the test pairs.
        predict: the nets.Nets, or a function like it.
        protocol: of metrics.PROTOCOLS.
        batch_size: pictures predicted at once.
        workers: decoding threads.
        details: dict to fill with Details by net name, or None.
        baselines: the baselines.Baselines to score too, or None.

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
    """The means of every net as a text table; the last column is `Scores.scale_correlation`."""
    from tabulate import tabulate  # not on a 310 host

    rows = [[net, *one.means().values(), one.scale_correlation()] for net, one in scores.items()]
    return tabulate(rows, ["", *metrics.METRICS, SCALE_COLUMN], floatfmt=".4f")


def final_lines(scores: Mapping[str, Scores]) -> str:
    """The lines that end an evaluation, with the names that users' scripts look for."""
    return "\n".join(metrics.final_line(net, scores[net].means()) for net in ("CoarseNet", "FineNet"))


def panel_rows(pairs: Sequence[Pair], scores: Scores, predict: Predict, each: int = 2) -> list[PanelRow]:
    """What `visual.panels` takes: the best, median and worst images by abs_rel, at most `each` of each."""
    abs_rel = np.array(scores.per_image["abs_rel"])
    order = np.argsort(abs_rel)[:np.count_nonzero(~np.isnan(abs_rel))]  # images without a measured pixel come last
    middle = len(order) // 2 - each // 2
    groups = {"best": order[:each], "median": order[middle:middle + each], "worst": order[-each:]}
    rows, shown = [], set()
    for label, indices in groups.items():
        for index in (int(i) for i in indices if i not in shown):
            shown.add(index)
            title = f"{label}: {pairs[index].name}\nabs_rel {abs_rel[index]:.3f}"
            rows.append(panel_row(title, pairs[index], predict))
    return rows


def panel_row(title: str, pair: Pair, predict: Predict) -> PanelRow:
    """One row of `visual.panels`; `predict` as in `score`."""
    rgb, full_depth_m = load_test_pair(pair)
    predictions_m = {net: np.exp(log_depth[0, 0]) for net, log_depth in predict(rgb[None], [pair.rgb]).items()}
    return title, image.load_rgb(pair.rgb), image.network_depth(full_depth_m)[0], predictions_m


def data_facts(pairs: Sequence[Pair]) -> dict[str, Any]:
    """What names a set of test pairs, wherever it lies: how many, and a fingerprint of its files' names and sizes."""
    facts = [f"{pair.name} {pair.rgb.stat().st_size} {pair.depth.stat().st_size}" for pair in pairs]
    return {"pairs": len(pairs), "fingerprint": names_digest(facts)}


def report(scores: Mapping[str, Scores], checkpoints: Mapping[str, str], versions: Mapping[str, str],
           data: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What metrics.json holds."""
    first = next(iter(scores.values()))
    return {
        "protocol": first.protocol,
        **({"data": data} if data else {}),
        "images": len(first.names),
        "pixels": first.pixels,
        "checkpoints": checkpoints,
        "versions": versions,
        "metrics": {net: {**one.means(), "scale_correlation": one.scale_correlation(),
                          "rmse_mean_over_images": one.means()["rmse"],
                          "rmse_pooled_over_pixels": one.pooled_rmse()} for net, one in scores.items()},
    }


def write_report(folder: StrPath, scores: Mapping[str, Scores], checkpoints: Mapping[str, str],
                 versions: Mapping[str, str], data: Mapping[str, Any] | None = None) -> None:
    """metrics.json and per_image.csv into `folder`."""
    folder = Path(folder)
    text = json.dumps(report(scores, checkpoints, versions, data), indent=2, allow_nan=False)
    write_text(folder / "metrics.json", text + "\n")
    with replacing(folder / "per_image.csv") as file:
        writer = csv.writer(file)
        writer.writerow(["net", "image", *metrics.METRICS])
        for net, one in scores.items():
            for row in zip(one.names, *one.per_image.values(), strict=True):
                writer.writerow([net, *("" if value != value else value for value in row)])
