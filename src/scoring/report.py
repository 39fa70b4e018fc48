"""Writes the report of an evaluation as a self-contained HTML file with tables and figures."""

import base64
import html
from collections.abc import Mapping
from typing import Any

from src import metrics
from src.base.files import StrPath, write_text
from src.scoring import baselines, evaluation, visual
from src.scoring.evaluation import Details, Scores

# Published scores, in the order of METRICS: delta1 delta2 delta3 abs_rel sq_rel rmse rmse_log si.
PUBLISHED = {
    "mean of the training set": (0.418, 0.711, 0.874, 0.408, 0.581, 1.244, 0.430, 0.304),
    "paper, coarse": (0.618, 0.891, 0.969, 0.228, 0.223, 0.871, 0.283, 0.221),
    "paper, coarse + fine": (0.611, 0.887, 0.971, 0.215, 0.212, 0.907, 0.285, 0.219),
    "model zoo, Ascend 910": (0.618, 0.880, 0.965, 0.228, 0.224, 0.764, 0.272, None),
}
PUBLISHED_PAIRS = 654  # the report lists the published scores only for a set of this size
PUBLISHED_NOTE = (
    "Not measured here. The first three rows: Eigen, Puhrsch and Fergus (NIPS 2014), table 1: NYU's 654 test images, "
    "trained on its full raw set, over the valid pixels of the full picture. The last: the model zoo's DepthNet on the "
    "same 654 images with protocol depthnet. Compare only what was measured on the same images with the same protocol."
)

_PROTOCOLS = {
    "depthnet": "on the 55x74 grid, prediction and target clipped to [0.1, 10] m, all measured pixels",
    "eigen": "at 480x640, rows 45..471 and columns 41..601 as far as the nets see them, target within (1e-3, 10) m",
}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } th, td { padding: .3em .8em; text-align: right }
th:first-child, td:first-child { text-align: left } tr { border-bottom: 1px solid #ddd }
img { width: 100%; display: block } figure { margin: 1.5em 0 } figcaption, .note { color: #666 }
"""


def write(
    path: StrPath,
    scores: Mapping[str, Scores],
    details: Mapping[str, Details],
    panels_png: bytes,
    checkpoints: Mapping[str, str],
    versions: Mapping[str, str],
    data: Mapping[str, Any],
) -> None:
    """Write the report.

    Args:
        path: the HTML file.
        scores, details: by name of net or baseline.
        panels_png: the bytes of panels.png.
        checkpoints, versions: files and library versions to list.
        data: as returned by evaluation.data_facts.
    """
    content = [*_scores(scores, data, {**checkpoints, **versions}), *_figures(details, panels_png)]
    write_text(
        path,
        "<!doctype html>\n<html lang=en><meta charset=utf-8><title>Depth evaluation</title>"
        f"<style>{_STYLE}</style>\n" + "\n".join(content) + "\n</html>\n",
    )


def _scores(scores: Mapping[str, Scores], data: Mapping[str, Any], origins: Mapping[str, str]) -> list[str]:
    """Return the HTML elements of the first part: the data and protocol, the scores, and the published scores."""
    first = next(iter(scores.values()))
    elements = [
        "<h1>Depth evaluation</h1>",
        f"<p>{data['pairs']} pairs, fingerprint {data['fingerprint']}, {first.pixels:,} pixels; protocol "
        f"<b>{first.protocol}</b>: {html.escape(_PROTOCOLS[first.protocol])}. Means over the images.</p>",
        _table(
            {
                net: {**of_net.means(), evaluation.SCALE_COLUMN: of_net.scale_correlation()}
                for net, of_net in scores.items()
            }
        ),
        f"<p class=note>{_seen(scores)}{evaluation.SCALE_COLUMN}: Pearson's correlation of predicted and true median "
        "depth over the images.</p>",
        f"<p class=note>{html.escape('; '.join(f'{name} {value}' for name, value in origins.items()))}</p>",
    ]
    if data["pairs"] == PUBLISHED_PAIRS:
        elements += [
            "<h2>Published</h2>",
            _table({name: dict(zip(metrics.METRICS, row, strict=True)) for name, row in PUBLISHED.items()}),
            f"<p class=note>{html.escape(PUBLISHED_NOTE)}</p>",
        ]
    return elements


def _figures(details: Mapping[str, Details], panels_png: bytes) -> list[str]:
    """Return the HTML elements of the second part: the panels, and the figures of the error."""
    nets = {net: details[net] for net in (baselines.MEAN_MAP, "CoarseNet", "FineNet") if net in details}
    return [
        "<h2>Best, median and worst images</h2>",
        _figure(panels_png, "ordered by abs_rel of FineNet; the colours of the error end at 0.5"),
        "<h2>Where the error is</h2>",
        _figure(
            visual.figure_png(visual.error_by_depth(nets)),
            "relative error by true depth, and the share of cells at that depth",
        ),
        _figure(visual.figure_png(visual.error_by_position(nets)), "relative error by position in the picture"),
        "<h2>Predicted over true depth</h2>",
        _figure(visual.figure_png(visual.predicted_over_true(nets)), "cells of the 55x74 grid of all images"),
        "<h2>Scale of each picture</h2>",
        _figure(
            visual.figure_png(visual.medians(nets)),
            "one point per image; on the grey line the scale is correct; a slope (least squares of the logarithms) "
            "below 1 means that the predicted scale varies less than the true one",
        ),
    ]


def _seen(scores: Mapping[str, Scores]) -> str:
    """Return a note on the baselines among the scores that are fitted to the targets."""
    names = [name for name in baselines.SEEN if name in scores]
    return f"{', '.join(names)}: fitted to the targets that they are scored against. " if names else ""


def _table(rows: Mapping[str, Mapping[str, float | None]]) -> str:
    """Return an HTML table of values by row label and column name; a None is an empty cell."""
    columns = list(next(iter(rows.values())))
    head = "".join(f"<th>{name}</th>" for name in ("", *columns))
    body = "".join(
        f"<tr><td>{html.escape(label)}</td>"
        + "".join(f"<td>{'' if values[name] is None else format(values[name], '.3f')}</td>" for name in columns)
        + "</tr>"
        for label, values in rows.items()
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _figure(png: bytes, caption: str) -> str:
    """Return an HTML figure that contains the bytes of a PNG file."""
    picture = base64.b64encode(png).decode()
    return (
        f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{picture}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
