"""Scoring, its means and what is written of it, in process; eval.py itself: test_commands.py and test_report.py."""

import csv
import json
import logging

import cv2
import numpy as np
import pytest
import scipy.stats
import torch

from src import metrics
from src.base.errors import NotFinite, UserError
from src.data import image, listing, plain
from src.nets.nets import Nets
from src.scoring import evaluation
from src.scoring.baselines import Baselines


def maps(count=3, size=(55, 74), holes=0.2, seed=0):
    """(log depth, target metres) that nobody has clipped; the last target has the least that is measured."""
    rng = np.random.default_rng(seed)
    log_depth = rng.normal(1, 0.9, (count, 1, 55, 74)).astype(np.float32)
    depth_m = rng.uniform(0.02, 12, (count, 1, *size)).astype(np.float32)
    depth_m[rng.random(depth_m.shape) < holes] = 0
    return log_depth, depth_m


def test_the_pooled_error_and_the_correlation_are_over_all_images():
    log_depth, depth_m = maps(5)
    depth_m[3] = 0
    scores = evaluation.Scores("depthnet")
    scores.add(["a", "b"], log_depth[:2], depth_m[:2])
    scores.add(["c", "d", "e"], log_depth[2:], depth_m[2:])
    assert scores.names == ["a", "b", "c", "d", "e"]
    measured = depth_m > 0
    predicted, true = np.exp(log_depth).clip(0.1, 10), depth_m.clip(0.1, 10)
    assert scores.pixels == measured.sum()
    true, predicted = torch.tensor(true), torch.tensor(predicted)

    def rmse(chosen):
        return float(torch.nn.functional.mse_loss(true[chosen], predicted[chosen])) ** 0.5

    assert scores.pooled_rmse() == pytest.approx(rmse(measured))
    medians = [[np.median(x[i][measured[i]]) for x in (predicted, true)] for i in (0, 1, 2, 4)]
    assert scores.scale_correlation() == pytest.approx(scipy.stats.pearsonr(*np.transpose(medians))[0], rel=1e-4)
    assert np.isnan(scores.per_image["rmse"][3]) and len(scores.per_image["rmse"]) == 5
    of_each = [rmse(measured & (np.arange(5) == i).reshape(5, 1, 1, 1)) for i in (0, 1, 2, 4)]
    assert scores.means()["rmse"] == pytest.approx(np.mean(of_each), rel=1e-6)


@pytest.mark.parametrize("constant", ["predicted", "true"])
def test_medians_that_do_not_vary_have_no_correlation(constant):
    log_depth, depth_m = maps(4, holes=0)
    (log_depth if constant == "predicted" else depth_m)[:] = 1.5
    scores = evaluation.Scores("depthnet")
    scores.add(list("abcd"), log_depth, depth_m)
    assert scores.scale_correlation() is None
    log_depth[0], depth_m[0] = 1.499999, 1.499999  # little, but they do
    scores = evaluation.Scores("depthnet")
    scores.add(list("abcd"), log_depth, depth_m)
    assert scores.scale_correlation() is not None


def test_details_leave_out_what_is_not_measured_and_clip_the_rest():
    log_depth, depth_m = maps(4)
    depth_m[1], depth_m[:, 0, 0, 0] = 0, 0
    details = evaluation.Details()
    details.add(log_depth[:2], depth_m[:2])
    details.add(log_depth[2:], depth_m[2:])
    assert len(details.medians_m) == 3
    measured = depth_m[:, 0] > 0
    true = np.where(measured, depth_m[:, 0].clip(0.1, 10), np.nan)
    predicted = np.exp(log_depth[:, 0]).clip(0.1, 10)
    error = np.abs(predicted - true) / true
    np.testing.assert_allclose(details.error_by_cell(), np.ma.masked_invalid(error).mean(0).filled(np.nan), rtol=1e-4)
    edges, by_depth, share = details.error_by_depth()
    valid = ~np.isnan(true)
    expected = scipy.stats.binned_statistic(true[valid], error[valid], "mean", edges).statistic
    np.testing.assert_allclose(by_depth, expected, rtol=1e-4)
    np.testing.assert_allclose(share, np.histogram(true[valid], edges)[0] / valid.sum())
    assert (edges[0], edges[-1], len(edges)) == (0, 10, 21)
    joint_edges, joint, _ = details.predicted_over_true()
    np.testing.assert_array_equal(joint, np.histogram2d(true[valid], predicted[valid], [joint_edges] * 2)[0])
    assert details.medians_m[1] == pytest.approx((np.median(predicted[2][valid[2]]), np.nanmedian(true[2])), rel=1e-6)
    assert (joint_edges[0], joint_edges[-1], len(joint_edges)) == (0, 10, 51)


def test_depths_of_which_nothing_was_seen_have_no_error():
    details = evaluation.Details()
    details.add(np.full((1, 1, 55, 74), np.log(2), np.float32), np.full((1, 1, 55, 74), 4.3, np.float32))
    edges, by_depth, share = details.error_by_depth()
    (place,) = np.flatnonzero(~np.isnan(by_depth))
    assert edges[place] == 4 and by_depth[place] == pytest.approx(2.3 / 4.3, rel=1e-4) and share[place] == 1
    joint_edges, joint, median = details.predicted_over_true()
    (place,) = np.flatnonzero(~np.isnan(median))
    assert joint_edges[place] == pytest.approx(4.2) and median[place] in (pytest.approx(1.9), pytest.approx(2.1))
    assert joint[place].sum() == 55 * 74


def test_the_median_prediction_of_few_cells():
    """One cell of 2.1 m; two of 4.3 m, half of which is the lower; all of 6.5 m predicted beyond the range."""
    true, predicted = np.zeros((1, 1, 55, 74), np.float32), np.full((1, 1, 55, 74), 3.1, np.float32)
    true[0, 0, 0, 0] = 2.1
    true[0, 0, 1, :2], predicted[0, 0, 1, :2] = 4.3, (1.1, 5.1)
    true[0, 0, 2], predicted[0, 0, 2] = 6.5, 40
    details = evaluation.Details()
    details.add(np.log(predicted), true)
    edges, _, median = details.predicted_over_true()
    found = {round(edges[place], 1): median[place] for place in np.flatnonzero(~np.isnan(median))}
    assert found == {2.0: pytest.approx(3.1), 4.2: pytest.approx(1.1), 6.4: pytest.approx(9.9)}


@pytest.fixture(scope="module")
def pairs(nyu):
    return listing.list_test(nyu)


def by_redness(rgb, names=()):
    """Two nets whose predictions one can compute: from how red the pixels are, and from how green."""
    small = torch.nn.functional.interpolate(torch.from_numpy(rgb), (55, 74)).numpy()
    return {"CoarseNet": small[:, :1], "FineNet": 2 * small[:, 1:2]}


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("protocol", ["depthnet", "eigen"])
def test_the_score_of_a_folder_is_that_of_its_pictures(pairs, protocol, batch_size, caplog):
    caplog.set_level(logging.INFO)
    details = {}
    scores = evaluation.score(pairs, by_redness, protocol, batch_size, 2, details)
    assert list(scores) == list(details) == ["CoarseNet", "FineNet"]
    for net, one in scores.items():
        assert one.names == [pair.name for pair in pairs] and one.protocol == protocol
        alone = evaluation.Scores(protocol)
        seen = evaluation.Details()
        for pair in pairs:
            rgb, depth_m = plain.load_test_pair(pair)
            log_depth, grid_m = by_redness(rgb[None])[net], image.network_depth(depth_m)[None]
            alone.add([pair.name], log_depth, depth_m[None, None] if protocol == "eigen" else grid_m)
            seen.add(log_depth, grid_m)
        assert one.per_image == alone.per_image
        np.testing.assert_array_equal(details[net].cells, seen.cells)
    assert scores["FineNet"].per_image != scores["CoarseNet"].per_image


def test_the_baselines_stand_before_the_nets_and_their_best_scale_after(nyu, pairs):
    every = evaluation.score(pairs, by_redness, "depthnet", 2, 1, baselines=Baselines(nyu, pairs, 1))
    nets = evaluation.score(pairs, by_redness, "depthnet", 2, 1)
    names = list(every)
    assert names.index("CoarseNet") > 0 and names.index("FineNet") < len(names) - 1
    assert set(nets) == {"CoarseNet", "FineNet"} < set(every)
    assert every["FineNet"].per_image == nets["FineNet"].per_image


def test_a_prediction_that_is_not_finite_is_named_with_its_net(pairs):
    def fine(rgb, coarse_log_depth):
        log_depth = coarse_log_depth.copy()
        log_depth[-1, 0, 3, 3] = np.nan
        return log_depth

    nets = Nets(lambda rgb: by_redness(rgb)["CoarseNet"], fine)
    with pytest.raises(NotFinite, match=rf"{pairs[1].rgb.name} \(FineNet\)"):
        evaluation.score(pairs, nets, "depthnet", 2, 1)


def test_the_eigen_protocol_wants_full_pictures(pairs):
    full, half = np.ones((480, 640), np.float32), np.ones((240, 320), np.float32)
    assert evaluation.targets([full, full], "eigen", pairs[:2]).shape == (2, 1, 480, 640)
    assert evaluation.targets([full, half], "depthnet", pairs[:2]).shape == (2, 1, 55, 74)
    for other in (half, np.ones((960, 1280), np.float32)):
        size = "x".join(map(str, other.shape))
        with pytest.raises(UserError, match=f"{pairs[1].depth.name}: {size}, but protocol eigen is defined on 480x640"):
            evaluation.targets([full, other], "eigen", pairs[:2])


def made_scores(abs_rels):
    """Scores of a net whose abs_rel were these, all else alike."""
    scores = evaluation.Scores("depthnet")
    for number, abs_rel in enumerate(abs_rels):
        depth_m = np.full((1, 1, 55, 74), 0 if np.isnan(abs_rel) else 2, np.float32)
        scores.add([f"{number:05d}"], np.log(depth_m.clip(2) * (1 + np.nan_to_num(abs_rel))), depth_m)
    return scores


@pytest.mark.parametrize(
    ("abs_rels", "each", "expected"),
    [
        (
            [0.5, 0.1, 0.4, 0.2, 0.3, 0.6, 0.7],
            2,
            ["best: 1", "best: 3", "median: 4", "median: 2", "worst: 5", "worst: 6"],
        ),
        ([0.5, 0.1, 0.4, 0.2, 0.3, 0.6, 0.7], 1, ["best: 1", "median: 2", "worst: 6"]),
        ([0.2, np.nan, 0.1], 2, ["best: 2", "best: 0"]),  # what was not measured is not shown, and nothing twice
        ([0.3, 0.2, 0.1], 1, ["best: 2", "median: 1", "worst: 0"]),
        ([0.3, 0.2, 0.1], 2, ["best: 2", "best: 1", "worst: 0"]),
        ([0.3, 0.1], 5, ["best: 1", "best: 0"]),
    ],
)
def test_panels_show_the_best_the_median_and_the_worst(pairs, abs_rels, each, expected):
    pairs = [
        listing.Pair(f"{number}", pairs[number % 4].rgb, pairs[number % 4].depth) for number in range(len(abs_rels))
    ]
    rows = evaluation.panel_rows(pairs, made_scores(abs_rels), by_redness, each)
    assert [row[0].splitlines()[0] for row in rows] == expected
    for title, rgb, true_m, predictions_m in rows:
        number = int(title.split(": ")[1].split()[0])
        assert title.endswith(f"\nabs_rel {abs_rels[number]:.3f}")
        pair = pairs[number]
        np.testing.assert_array_equal(rgb, cv2.imread(str(pair.rgb))[..., ::-1])
        given, depth_m = plain.load_test_pair(pair)
        np.testing.assert_array_equal(true_m, image.network_depth(depth_m)[0])
        np.testing.assert_allclose(predictions_m["FineNet"], np.exp(by_redness(given[None])["FineNet"][0, 0]))


def test_two_of_each_are_shown_unless_asked_otherwise(pairs):
    pairs = [listing.Pair(f"{number}", pairs[0].rgb, pairs[0].depth) for number in range(8)]
    assert len(evaluation.panel_rows(pairs, made_scores(np.arange(8) / 10), by_redness)) == 6


def test_a_set_is_told_by_the_names_and_sizes_of_its_files(pairs, tmp_path):
    facts = evaluation.data_facts(pairs)
    assert facts["pairs"] == 4 and facts == evaluation.data_facts(list(pairs))
    copy = tmp_path / pairs[3].rgb.name
    copy.write_bytes(pairs[3].rgb.read_bytes())
    elsewhere = [*pairs[:3], listing.Pair(pairs[3].name, copy, pairs[3].depth)]
    assert evaluation.data_facts(elsewhere) == facts
    copy.write_bytes(copy.read_bytes() + b"1")
    assert evaluation.data_facts(elsewhere)["fingerprint"] != facts["fingerprint"]


def test_what_is_written_is_what_was_scored(tmp_path):
    scores = {}
    for number, net in enumerate(("CoarseNet", "FineNet")):
        log_depth, depth_m = maps(3, seed=number)
        depth_m[1] = 0
        scores[net] = evaluation.Scores("depthnet")
        scores[net].add(["a", 'b,"', "c"], log_depth, depth_m)
    evaluation.write_report(tmp_path, scores, {"CoarseNet": "c.ckpt"}, {"numpy": "2"}, {"pairs": 3})
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert (written["protocol"], written["images"], written["data"]) == ("depthnet", 3, {"pairs": 3})
    assert written["pixels"] == scores["CoarseNet"].pixels
    assert written["checkpoints"] == {"CoarseNet": "c.ckpt"} and written["versions"] == {"numpy": "2"}
    for net, one in scores.items():
        assert written["metrics"][net] == {
            **one.means(),
            "scale_correlation": one.scale_correlation(),
            "rmse_mean_over_images": one.means()["rmse"],
            "rmse_pooled_over_pixels": one.pooled_rmse(),
        }
    with open(tmp_path / "per_image.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["net"], row["image"]) for row in rows] == [(net, name) for net in scores for name in ("a", 'b,"', "c")]
    for number, row in enumerate(rows):
        for name in metrics.METRICS:
            value = scores[row["net"]].per_image[name][number % 3]
            assert row[name] == ("" if number % 3 == 1 else repr(value))
    assert "data" not in evaluation.report(scores, {}, {})
    with pytest.raises(ValueError, match="not JSON compliant"):  # which has no NaN
        evaluation.write_report(tmp_path, scores, {}, {}, {"pairs": np.nan})
    assert json.loads((tmp_path / "metrics.json").read_text()) == written


def test_the_table_and_the_lines_at_the_end_have_the_means():
    scores = {}
    for number, net in enumerate(("mean map", "CoarseNet", "FineNet")):
        scores[net] = evaluation.Scores("depthnet")
        scores[net].add(list("abc"), *maps(3, seed=number))
    lines = evaluation.table(scores).splitlines()
    assert lines[0].split() == [*metrics.METRICS, "r(median)"]
    for net, line in zip(scores, lines[2:], strict=True):
        assert line.startswith(net)
        expected = [*scores[net].means().values(), scores[net].scale_correlation()]
        assert line.removeprefix(net).split() == [f"{value:.4f}" for value in expected]
    ends = evaluation.final_lines(scores).splitlines()
    assert ends == [metrics.final_line(net, scores[net].means()) for net in ("CoarseNet", "FineNet")]
