"""The metrics against closed forms and an explicit float64 loop."""

import cv2
import numpy as np
import pytest

from src import metrics
from src.base.errors import CheckFailed, NotFinite


def test_a_constant_factor_has_closed_forms():
    target_m = np.full((2, 1, 55, 74), 2.0, np.float32)
    prediction = np.log(target_m * np.array([1.2, 1.5], np.float32).reshape(2, 1, 1, 1))
    values = metrics.evaluate(prediction, target_m)
    np.testing.assert_allclose(values["delta1"], [1, 0])
    np.testing.assert_allclose(values["delta2"], [1, 1])
    np.testing.assert_allclose(values["abs_rel"], [0.2, 0.5], rtol=1e-6)
    np.testing.assert_allclose(values["sq_rel"], [0.4**2 / 2, 1 / 2], rtol=1e-5)
    np.testing.assert_allclose(values["rmse"], [0.4, 1], rtol=1e-6)
    np.testing.assert_allclose(values["rmse_log"], np.log([1.2, 1.5]), rtol=1e-5)
    np.testing.assert_allclose(values["si"], 0, atol=1e-6)
    assert all(column.dtype == np.float64 and column.shape == (2,) for column in values.values())
    assert tuple(values) == metrics.METRICS


def test_a_ratio_of_just_125_percent_counts():
    target_m = np.full((1, 1, 55, 74), 8.0, np.float32)
    values = metrics.evaluate(np.log(np.full_like(target_m, 20)), target_m)  # clipped to 10 m
    assert values["delta1"][0] == 1


def test_equals_a_loop_over_pixels_with_holes_and_clips():
    rng = np.random.default_rng(0)
    log_depth = rng.normal(0.5, 1.5, (3, 1, 55, 74)).astype(np.float32)  # beyond [0.1, 10] m on both sides
    target_m = rng.uniform(0.05, 12, (3, 1, 55, 74)).astype(np.float32)
    target_m[rng.random(target_m.shape) < 0.2] = 0
    values = metrics.evaluate(log_depth, target_m)
    for i in range(3):
        pairs = [
            (min(max(float(np.exp(np.float64(x))), 0.1), 10.0), min(max(float(t), 0.1), 10.0))
            for x, t in zip(log_depth[i].ravel(), target_m[i].ravel(), strict=True)
            if t > 0
        ]
        logs = [np.log(p / t) for p, t in pairs]
        mean_log = sum(logs) / len(logs)
        expected = {
            "delta1": sum(max(p / t, t / p) <= 1.25 for p, t in pairs) / len(pairs),
            "delta2": sum(max(p / t, t / p) <= 1.25**2 for p, t in pairs) / len(pairs),
            "delta3": sum(max(p / t, t / p) <= 1.25**3 for p, t in pairs) / len(pairs),
            "abs_rel": sum(abs(p - t) / t for p, t in pairs) / len(pairs),
            "sq_rel": sum((p - t) ** 2 / t for p, t in pairs) / len(pairs),
            "rmse": (sum((p - t) ** 2 for p, t in pairs) / len(pairs)) ** 0.5,
            "rmse_log": (sum(e**2 for e in logs) / len(logs)) ** 0.5,
            "si": (sum(e**2 for e in logs) / len(logs) - mean_log**2) ** 0.5,
        }
        for name, value in expected.items():
            assert values[name][i] == pytest.approx(value, rel=1e-9), name


@pytest.mark.parametrize("protocol", metrics.PROTOCOLS)
def test_the_batch_size_changes_nothing(protocol):
    rng = np.random.default_rng(1)
    log_depth = rng.normal(1, 0.3, (3, 1, 55, 74)).astype(np.float32)
    target_m = rng.uniform(0.5, 9, (3, 1, *((55, 74) if protocol == "depthnet" else (480, 640)))).astype(np.float32)
    whole = metrics.evaluate(log_depth, target_m, protocol)
    for i in range(3):
        one = metrics.evaluate(log_depth[i : i + 1], target_m[i : i + 1], protocol)
        assert all(one[name][0] == whole[name][i] for name in whole)


def test_eigen_lays_the_prediction_over_the_picture():
    """A depth ramp seen through the crop: resized back, it must lie where it came from."""
    rows, columns = np.mgrid[0:480, 0:640]
    full_m = (1 + 0.005 * columns + 0.008 * rows).astype(np.float32)
    seen = cv2.resize(full_m[12:468, 16:624], (74, 55), interpolation=cv2.INTER_LINEAR)
    values = metrics.evaluate(np.log(seen)[None, None], full_m[None, None], "eigen")
    assert values["abs_rel"][0] < 1e-3
    assert metrics.evaluate(np.log(np.roll(seen, 2, axis=1))[None, None], full_m[None, None], "eigen")["abs_rel"] > 0.01


def test_eigen_is_exact_to_a_pixel():
    """What is linear over the cells is linear over rows 12..468 and columns 16..624 of the picture."""
    row, column = (np.arange(480) + 0.5 - 12) / 456 * 55 - 0.5, (np.arange(640) + 0.5 - 16) / 608 * 74 - 0.5
    full_m = 2 + 0.03 * row.clip(0, 54)[:, None] + 0.05 * column
    predicted_m = 2 + 0.03 * np.arange(55)[:, None] + 0.05 * np.arange(74)
    values = metrics.evaluate(np.log(predicted_m)[None, None], full_m[None, None], "eigen")
    assert values["rmse"][0] < 1e-5


def test_eigen_scores_its_crop_and_valid_range_only():
    full_m = np.full((480, 640), 3.0, np.float32)
    log_depth = np.log(np.full((1, 1, 55, 74), 3.0, np.float32))
    outside = np.ones_like(full_m, bool)
    outside[45:468, 41:601] = False  # rows 45..471 as far as the net sees (468)
    spoiled = np.where(outside, 9.0, full_m)
    spoiled[100:104, 100] = 0, 10.0, 5e-4, 12.0
    values = metrics.evaluate(log_depth, spoiled[None, None], "eigen")
    assert values["rmse"][0] == pytest.approx(0, abs=1e-6)
    for inside, value_m in (((45, 41), 9.0), ((467, 600), 9.0), ((200, 200), 0.01)):
        touched = spoiled.copy()
        touched[inside] = value_m
        assert metrics.evaluate(log_depth, touched[None, None], "eigen")["rmse"][0] > 1e-3


def test_an_image_without_a_measured_pixel_does_not_count():
    target_m = np.stack([np.full((1, 55, 74), 2.0), np.zeros((1, 55, 74))]).astype(np.float32)
    values = metrics.evaluate(np.log(np.full_like(target_m, 3.0)), target_m)
    assert np.isnan(values["rmse"][1])
    assert metrics.means(values)["rmse"] == pytest.approx(1, rel=1e-6)


def test_predictions_that_are_not_finite_are_named():
    log_depth = np.zeros((5, 1, 55, 74))
    assert metrics.finite(log_depth, "abcde") is log_depth
    for place, value in enumerate((np.nan, np.inf, -np.inf)):
        log_depth[place, 0, 5, 7] = value
    with pytest.raises(NotFinite, match=r"^a, b, c: the net's prediction is not finite"):
        metrics.finite(log_depth, "abcde")
    log_depth[4, 0, 0, 0] = np.nan
    with pytest.raises(NotFinite, match=r"^a, b, c \(and 1 more\): "):
        metrics.finite(log_depth, "abcde")
    with pytest.raises(NotFinite, match=r"^b, c: "):
        metrics.finite(log_depth[1:4], "bcd")
    with pytest.raises(ValueError, match="longer"):
        metrics.finite(log_depth[3:4], "")


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="protocol"):
        metrics.evaluate(np.zeros((1, 1, 55, 74)), np.ones((1, 1, 55, 74)), "kitti")
    for ours, theirs in ((1, 2), (2, 1)):
        with pytest.raises(ValueError, match=f"{ours} predictions for {theirs} targets"):
            metrics.evaluate(np.zeros((ours, 1, 55, 74)), np.ones((theirs, 1, 55, 74)))
    for ours, theirs in ((55, 54), (54, 55)):
        with pytest.raises(ValueError, match="differ in size"):
            metrics.evaluate(np.zeros((1, 1, ours, 74)), np.ones((1, 1, theirs, 74)))
    for size in ((55, 74), (481, 640)):
        with pytest.raises(ValueError, match="480x640"):
            metrics.evaluate(np.zeros((1, 1, 55, 74)), np.ones((1, 1, *size)), "eigen")


def test_the_final_line_has_the_names_that_scripts_look_for():
    line = metrics.final_line("FineNet", dict.fromkeys(metrics.METRICS, 0.5))
    labels = " ".join(part.split(":")[-2].strip() for part in line.split(","))
    depths = "abs_relative_loss sqr_relative_loss rmse_linear_loss rmse_log_loss"
    assert labels == f"delta1_loss delta2_loss delta3_loss {depths}"


def test_a_mean_over_nothing_is_no_number():
    nothing = metrics.evaluate(np.zeros((2, 1, 55, 74), np.float32), np.zeros((2, 1, 55, 74), np.float32))
    with pytest.raises(CheckFailed, match="no measured pixel"):
        metrics.means(nothing)
