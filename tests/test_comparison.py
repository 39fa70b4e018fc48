"""Two evaluations side by side."""

import json

import numpy as np
import pytest
import scipy.stats

from src.base.errors import UserError
from src.scoring import comparison, evaluation
from tests.test_commands import one_line


def test_two_evaluations_side_by_side(evaluated, forked, tmp_path):
    result = forked("eval.py --compare plain", evaluated / "a flipped" / "metrics.json", cwd=evaluated)
    assert result.returncode == 0, result.stderr
    assert "mean training map: the same" in result.stdout
    reports = [json.loads((evaluated / name / "metrics.json").read_text()) for name in ("plain", "a flipped")]
    metrics = [report["metrics"]["FineNet"] for report in reports]
    assert metrics[0] != metrics[1]
    rows = result.stdout.split("FineNet ")[1].splitlines()[2:]
    for column, name in enumerate(("delta1", "delta2", "delta3", "abs_rel", "sq_rel", "rmse", "rmse_log", "si"), -8):
        figures = [float(row.split()[column]) for row in rows[:5]]
        assert figures[:2] == pytest.approx([one[name] for one in metrics], abs=6e-5)
        assert figures[2] == pytest.approx(metrics[1][name] - metrics[0][name], abs=6e-5)
        assert figures[3] <= figures[2] <= figures[4]
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "metrics.json").write_text("[]")
    (tmp_path / "odd" / "per_image.csv").write_text("net,image\n")
    for other, expected in (
        ("eigen", "differ in protocol: depthnet and eigen"),
        (tmp_path / "odd", "odd: not an evaluation"),
        ("absent", "absent/metrics.json: no such file"),
    ):
        assert expected in one_line(forked(f"eval.py --compare plain {other}", cwd=evaluated))


def test_evaluations_of_other_nets_or_pictures_are_not_compared(tmp_path):
    rng = np.random.default_rng(0)
    log_depth, depth_m = rng.normal(1, 0.1, (3, 1, 55, 74)), rng.uniform(1, 4, (3, 1, 55, 74)).astype(np.float32)
    for name, net, pictures in (("a", "FineNet", "pqr"), ("b", "FineNet", "pqs"), ("c", "CoarseNet", "pqr")):
        scores = evaluation.Scores("depthnet")
        scores.add(list(pictures), log_depth, depth_m)
        (tmp_path / name).mkdir()
        evaluation.write_report(tmp_path / name, {net: scores}, {}, {})
    assert comparison.compare(tmp_path / "a", tmp_path / "a") == "FineNet: the same"
    with pytest.raises(UserError, match="b: FineNet was scored on other pictures"):
        comparison.compare(tmp_path / "a", tmp_path / "b")
    with pytest.raises(UserError, match="c have no net in common"):
        comparison.compare(tmp_path / "a", tmp_path / "c")


def test_the_interval_is_scipy_s_bootstrap():
    differences = np.random.default_rng(1).normal(0.02, 0.1, (60, 2))
    low, high = comparison.interval(differences)
    for column in range(2):
        options = {"n_resamples": 10_000, "method": "percentile", "rng": np.random.default_rng(2)}
        expected = scipy.stats.bootstrap((differences[:, column],), np.mean, **options).confidence_interval
        assert (low[column], high[column]) == pytest.approx(tuple(expected), abs=0.002)
