"""Compares two evaluations of the same pictures, with confidence intervals of the differences."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from src.base.arrays import Doubles
from src.base.errors import UserError
from src.base.files import StrPath
from src.metrics import METRICS

RESAMPLES = 10_000


def read(path: StrPath) -> tuple[dict[str, Any], dict[str, dict[str, list[float]]]]:
    """Read an evaluation from its folder or its metrics.json.

    Returns:
        (metrics.json as a dict, {net: {image: list of METRICS values}}).

    Raises UserError if a file is missing or not written by eval.py.
    """
    path = Path(path)
    folder = path.parent if path.name == "metrics.json" else path
    try:
        facts = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        with open(folder / "per_image.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        nets: dict[str, dict[str, list[float]]] = {net: {} for net in facts["metrics"]}
        for row in rows:
            nets[row["net"]][row["image"]] = [float(row[name] or "nan") for name in METRICS]
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such file: expected what eval.py --output_dir writes") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: not an evaluation that eval.py --output_dir has written") from error
    return facts, nets


def compare(first: StrPath, second: StrPath) -> str:
    """Compare two evaluations as text: for each net the means, their difference, and its 95 % interval by a bootstrap
    over the pictures (Efron, 1979).

    Args:
        first, second: the evaluations, as `read` takes them.

    Raises UserError unless both used the same pictures and protocol and have a net in common.
    """
    (first_facts, first_nets), (second_facts, second_nets) = read(first), read(second)
    for name in ("protocol", "data"):
        values = first_facts.get(name), second_facts.get(name)
        if values[0] != values[1]:
            raise UserError(f"{first} and {second} differ in {name}: {values[0]} and {values[1]}")
    tables = []
    for net in (net for net in first_nets if net in second_nets):
        if first_nets[net].keys() != second_nets[net].keys():
            raise UserError(f"{first} and {second}: {net} was scored on other pictures")
        a, b = (np.array([nets[net][image] for image in first_nets[net]]) for nets in (first_nets, second_nets))
        same = np.array_equal(a, b, equal_nan=True)
        tables.append(f"{net}: the same" if same else "\n" + _table(net, {f"{first} ": a, f"{second}": b}))
    if not tables:
        raise UserError(f"{first} and {second} have no net in common")
    return "\n".join(tables)


def _table(net: str, scores: dict[str, Doubles]) -> str:
    """Return the means, their difference and its interval as a text table.

    Args:
        net: name of the net.
        scores: METRICS (images, metrics) by name of the evaluation; two entries.
    """
    from tabulate import tabulate

    a, b = scores.values()
    rows = {
        **{label: np.nanmean(values, 0) for label, values in scores.items()},
        "difference": np.nanmean(b - a, 0),
        **dict(zip(("95 % from", "to"), interval(b - a), strict=True)),
    }
    cells = [
        [label, *(format(value, ".4f" if number < 2 else "+.4f") for value in row)]
        for number, (label, row) in enumerate(rows.items())
    ]
    return tabulate(cells, [net, *METRICS], disable_numparse=True, colalign=["left"] + ["right"] * 8)


def interval(differences: Doubles, share: float = 0.95) -> Doubles:
    """Return the percentile bootstrap interval of the mean over the first axis, ignoring NaN.

    Args:
        differences: (images, metrics).
        share: confidence level.

    Returns:
        (2, metrics): the lower and the upper end.
    """
    from scipy.stats import bootstrap

    # In batches: all resamples of 654 pictures at once would take 400 MB.
    result = bootstrap(
        (differences,),
        np.nanmean,
        axis=0,
        n_resamples=RESAMPLES,
        batch=500,
        method="percentile",
        confidence_level=share,
        random_state=np.random.default_rng(0),
    )
    return np.array([result.confidence_interval.low, result.confidence_interval.high])
