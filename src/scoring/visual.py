"""Draws training curves, panels of predictions, coloured depth, and the figures of the report."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import matplotlib
import numpy as np

from src.base.arrays import Floats, Pixels
from src.base.errors import UserError
from src.base.files import StrPath, printable, replacing
from src.data import image

if TYPE_CHECKING:  # importing these takes a third of a second, so only the functions that draw import them
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from src.scoring.evaluation import Details, PanelRow

Rows: TypeAlias = Sequence[Mapping[str, str]]  # rows of a CSV file, each a dict of column name to text


def label(name: object) -> str:
    """Return a file name as text that matplotlib can draw: `$` and letters that no installed font has are escaped.

    Adds the fonts that the other letters need to matplotlib's default fonts.
    """
    from matplotlib.font_manager import get_font

    families: list[str] = matplotlib.rcParams["font.family"]
    main = get_font(matplotlib.font_manager.findfont("DejaVu Sans"))
    text = printable(name)
    for letter in sorted(set(text)):
        if not main.get_char_index(ord(letter)):
            family = _font_with(letter)
            if family is None:
                text = text.replace(letter, letter.encode("unicode_escape").decode())
            elif family not in families:
                families = [*families, family]
    matplotlib.rcParams["font.family"] = families
    return text.replace("$", r"\$")


@functools.cache
def _font_with(letter: str) -> str | None:
    """Return the name of an installed font that has a letter. Fonts named Last Resort only draw boxes."""
    from matplotlib.font_manager import fontManager, get_font

    fonts = [font for font in fontManager.ttflist if not font.name.startswith("Last Resort")]
    for font in sorted(fonts, key=lambda font: (font.style != "normal", font.weight != 400, font.name)):
        with contextlib.suppress(OSError, RuntimeError):  # removed since matplotlib listed it, or not readable
            if get_font(font.fname).get_char_index(ord(letter)):
                return font.name
    return None


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches, with matplotlib's own defaults instead of those of matplotlibrc.

    Does not use pyplot, which would keep every figure in memory.
    """
    from matplotlib.figure import Figure

    matplotlib.rcdefaults()
    return Figure(figsize=(width, height), layout="constrained")


def subplots(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, Any]:
    """Return (figure of this size in inches, its axes as an array (rows, columns)). `options`: of Figure.subplots."""
    figure = new_figure(width, height)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def figure_png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def save_figure(figure: Figure, path: StrPath) -> bytes:
    """Write a figure as PNG, atomically. Returns the file's bytes."""
    content = figure_png(figure)
    with replacing(path, "wb") as file:
        file.write(content)
    return content


def check_colormap(name: str) -> None:
    """Raise UserError unless matplotlib has a colour map of this name."""
    if name not in matplotlib.colormaps:
        raise UserError(f"--colormap {name}: unknown to matplotlib; expected for example viridis, turbo, magma or gray")


def colour_table(colormap: str) -> Pixels:
    """Return the colours of a matplotlib colour map: uint8 RGB (256, 3)."""
    return (matplotlib.colormaps[colormap](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(np.uint8)


def colour(depth_m: Floats, max_depth: float, colormap: str) -> Pixels:
    """Colour a depth map.

    Args:
        depth_m: metres (H, W).
        max_depth: metres at the end of the colour map, which begins at 0.
        colormap: name of a matplotlib colour map.

    Returns:
        uint8 RGB (H, W, 3), black where not measured.
    """
    rgb = colour_table(colormap)[(depth_m * (255 / max_depth)).clip(0, 255).astype(np.uint8)]
    rgb[depth_m <= 0] = 0
    return rgb


def with_scale_bar(rgb: Pixels, max_depth: float, colormap: str) -> Pixels:
    """Add a scale bar of the colours in metres on the right of a picture.

    Args:
        rgb: uint8 (H, W, 3).
        max_depth, colormap: as in `colour`.

    Returns:
        uint8 (H, W + about H / 5, 3).
    """
    from matplotlib.ticker import MaxNLocator

    height = rgb.shape[0]
    size = max(height / 480, 0.4)  # scale of the text and the bar
    bar = np.full((height, round(96 * size), 3), 255, np.uint8)
    margin, left, right = round(16 * size), round(8 * size), round(32 * size)
    rows = np.arange(margin, height - margin)
    row_m = max_depth * (1 - (rows - margin) / max(len(rows) - 1, 1))
    bar[rows, left:right] = colour(np.maximum(row_m, 1e-6)[:, None], max_depth, colormap)
    for tick_m in MaxNLocator(5).tick_values(0, max_depth):
        if 0 <= tick_m <= max_depth:
            y = round(margin + (1 - tick_m / max_depth) * (len(rows) - 1))
            cv2.line(bar, (left, y), (right + round(4 * size), y), (0, 0, 0), max(1, round(size)))
            cv2.putText(
                bar,
                f"{tick_m:g} m",
                (right + round(8 * size), y + round(5 * size)),
                cv2.FONT_HERSHEY_SIMPLEX,
                0.45 * size,
                (0, 0, 0),
                max(1, round(size)),
                cv2.LINE_AA,
            )
    return np.hstack([rgb, bar])


def curves(stages: Mapping[str, Rows], path: StrPath, mean_map: Mapping[str, float] | None = None) -> None:
    """Draw the training curves of one or both stages and save them as PNG.

    Args:
        stages: by name of the stage, the rows of its CSV file as csv.DictReader returns them.
        path: the PNG file.
        mean_map: metrics of the mean training map, drawn as dashed lines, or None.
    """
    stages = {name: rows for name, rows in stages.items() if rows}
    figure, axes = subplots(len(stages), 2, 11, 3.6 * len(stages), sharex="row")
    for (loss_axis, metric_axis), (name, rows) in zip(axes, stages.items(), strict=True):
        _loss_curve(loss_axis, name, rows)
        _validation_curve(metric_axis, name, rows, mean_map)
    save_figure(figure, path)


def _loss_curve(axis: Axes, name: str, rows: Rows) -> None:
    for column, label, style in (("loss", "one step", {"alpha": 0.6}), ("mean_loss", "epoch mean", {"marker": "o"})):
        points = [(int(row["step"]), float(row[column])) for row in rows if row[column]]
        if points:
            axis.plot(*zip(*points, strict=True), label=label, **style)
    axis.set(title=f"{name} net: training loss", xlabel="step", ylabel="loss")
    axis.locator_params("x", integer=True)
    axis.grid(alpha=0.3)
    axis.legend()


def _validation_curve(axis: Axes, name: str, rows: Rows, mean_map: Mapping[str, float] | None) -> None:
    rows = [row for row in rows if row["abs_rel"]]
    axis.set(title=f"{name} net: validation", xlabel="step")
    axis.grid(alpha=0.3)
    if not rows:
        axis.text(0.5, 0.5, "no --val_data", ha="center", transform=axis.transAxes, color="grey")
        return
    for metric in ("delta1", "abs_rel", "rmse_log"):
        (line,) = axis.plot(
            [int(row["step"]) for row in rows], [float(row[metric]) for row in rows], marker="o", label=metric
        )
        if mean_map:
            axis.axhline(mean_map[metric], color=line.get_color(), ls="--", lw=1)
    if mean_map:
        axis.plot([], [], color="grey", ls="--", lw=1, label="mean map")
    axis.legend()


def _thumbnail(rgb: Pixels) -> Pixels:
    """Crop a picture to what the nets see and resize it to RGB_SIZE. A picture of that size is returned as it is."""
    if rgb.shape[:2] == image.RGB_SIZE:
        return rgb
    return cv2.resize(image.crop(rgb), image.RGB_SIZE[::-1], interpolation=cv2.INTER_AREA)


LEARNING_COLUMNS = 8  # largest number of predictions in a row of `learning`


def learning(pictures: Sequence[Pixels], targets_m: Sequence[Floats], maps_m: Mapping[int, Floats]) -> Figure:
    """Draw how the predictions change during training: a row per picture with RGB, target and predictions.

    Args:
        pictures: N pictures, each uint8 RGB (H, W, 3).
        targets_m: their targets, each metres (55, 74), 0 = not measured.
        maps_m: predicted metres (N, 55, 74) by step. At most LEARNING_COLUMNS steps are drawn, evenly spaced.
    """
    steps = sorted(maps_m)
    chosen = [steps[index] for index in np.unique(np.linspace(0, len(steps) - 1, LEARNING_COLUMNS).round().astype(int))]
    titles = ["RGB", "target", *(f"step {step}" for step in chosen)]
    figure, axes = subplots(len(pictures), len(titles), 1.8 * len(titles), 1.45 * len(pictures))
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    for row, (rgb, target_m) in enumerate(zip(pictures, targets_m, strict=True)):
        target_m = np.where(target_m > 0, target_m, np.nan)
        high = np.nanmax(target_m) if np.isfinite(target_m).any() else 10
        axes[row, 0].imshow(_thumbnail(rgb))
        for axis, depth_m in zip(axes[row, 1:], [target_m, *(maps_m[step][row] for step in chosen)], strict=True):
            drawn = axis.imshow(depth_m, vmin=0, vmax=high, cmap="turbo")
        figure.colorbar(drawn, ax=axes[row].tolist(), label="m", pad=0.01, aspect=12)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure


def panels(rows: Sequence[PanelRow]) -> Figure:
    """Draw a row per picture: RGB, target, the prediction of each net, and the relative error of the last net.

    Args:
        rows: each (title, RGB uint8 (H, W, 3), target metres (55, 74), predicted metres (55, 74) by name of the net).
    """
    nets = list(rows[0][3])
    titles = ["RGB", "target", *nets, f"relative error of {nets[-1]}"]
    figure, axes = subplots(len(rows), len(titles), 3 * len(titles), 2.5 * len(rows))
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    for row_axes, row in zip(axes, rows, strict=True):
        _panel_row(figure, row_axes, *row)
    return figure


def _panel_row(
    figure: Figure, axes: Any, title: str, rgb: Pixels, target_m: Floats, predictions_m: Mapping[str, Floats]
) -> None:
    measured_m = target_m[target_m > 0] if (target_m > 0).any() else next(iter(predictions_m.values()))
    low, high = measured_m.min(), measured_m.max()
    target_m = np.where(target_m > 0, target_m, np.nan)
    axes[0].imshow(_thumbnail(rgb))
    axes[0].set_ylabel("\n".join(map(label, title.split("\n"))), fontsize=8)
    for axis, depth_m in zip(axes[1:-1], [target_m, *predictions_m.values()], strict=True):
        drawn = axis.imshow(depth_m, vmin=low, vmax=high, cmap="viridis")
    figure.colorbar(drawn, ax=axes[1:-1].tolist(), label="m", shrink=0.9, pad=0.01)
    error = np.abs(list(predictions_m.values())[-1] - target_m) / target_m
    drawn = axes[-1].imshow(error, vmin=0, vmax=0.5, cmap="magma")
    figure.colorbar(drawn, ax=axes[-1], shrink=0.9)
    for axis in axes:
        axis.set(xticks=[], yticks=[])


FIGURE_WIDTH = 10  # inches, of all figures of the report except the panels


def error_by_depth(details: Mapping[str, Details]) -> Figure:
    """Draw the mean relative error by true depth, a line per net. `details`: by name of the net."""
    figure, ((axis,), (shares,)) = subplots(2, 1, FIGURE_WIDTH, 5, sharex=True, height_ratios=[3, 1])
    for net, of_net in details.items():
        edges, error, share = of_net.error_by_depth()
        axis.stairs(error, edges, label=net, baseline=None)
    shares.stairs(share, edges, fill=True, color="0.7")
    axis.set(ylabel="mean |p - t| / t", title="relative error over true depth")
    axis.legend()
    axis.grid(alpha=0.3)
    shares.set(xlabel="true depth, m", ylabel="share of cells")
    return figure


def _side_by_side(count: int, height: float) -> tuple[Figure, Any]:
    """Return (figure, its axes): `count` axes in a row, each at most a third of the figure wide."""
    figure, axes = subplots(1, max(count, 3), FIGURE_WIDTH, height)
    for axis in axes[0][count:]:
        axis.axis("off")
    return figure, axes[0]


def error_by_position(details: Mapping[str, Details]) -> Figure:
    """Draw the mean relative error of each of the 55x74 cells, a map per net."""
    maps = {net: of_net.error_by_cell() for net, of_net in details.items()}
    figure, axes = _side_by_side(len(maps), 2.8)
    high = max(np.nanmax(error) for error in maps.values())
    for axis, (net, error) in zip(axes, maps.items(), strict=False):
        drawn = axis.imshow(error, vmin=0, vmax=high, cmap="magma")
        axis.set(title=net, xticks=[], yticks=[])
    figure.colorbar(drawn, ax=axes[: len(maps)].tolist(), label="mean |p - t| / t", shrink=0.9)
    return figure


def predicted_over_true(details: Mapping[str, Details]) -> Figure:
    """Draw the histogram of predicted by true depth, a map per net, and the median prediction."""
    figure, axes = _side_by_side(len(details), 3.9)
    for axis, (net, of_net) in zip(axes, details.items(), strict=False):
        edges, counts, median = of_net.predicted_over_true()
        axis.pcolormesh(edges, edges, np.where(counts.T > 0, counts.T, np.nan), norm="log", cmap="Blues")
        axis.plot(edges, edges, color="0.5", lw=1)
        axis.stairs(median, edges, baseline=None, color="tab:red", label="median")
        axis.set(title=net, xlabel="true depth, m", aspect="equal")
        axis.legend(fontsize=8)
    axes[0].set(ylabel="predicted depth, m")
    return figure


def medians(details: Mapping[str, Details]) -> Figure:
    """Draw the predicted over the true median depth of each image, a plot per net, with the line of correct scale and
    a fitted line. A slope below 1 means that the predicted scale varies less than the true scale."""
    figure, axes = _side_by_side(len(details), 3.9)
    high = 1.05 * max(np.max(of_net.medians_m) for of_net in details.values())
    for axis, (net, of_net) in zip(axes, details.items(), strict=False):
        predicted, true = np.array(of_net.medians_m).T
        axis.plot((0, high), (0, high), color="0.5", lw=1)
        axis.plot(true, predicted, "o", ms=4, alpha=0.6)
        title = net
        if np.ptp(true) > 0:
            slope, offset = np.polyfit(np.log(true), np.log(predicted), 1)
            axis.plot(sorted(true), np.exp(slope * np.log(sorted(true)) + offset), color="tab:red", lw=1)
            title = f"{net}: slope {slope:.2f}"
        axis.set(xlim=(0, high), ylim=(0, high), xlabel="true median, m", aspect="equal", title=title)
    axes[0].set(ylabel="predicted median, m")
    return figure
