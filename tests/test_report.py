"""What the evaluation shows beside its numbers: the HTML report, and TensorBoard's events while training."""

import base64
import csv
import html.parser
import json
import re

import cv2
import mindspore as ms
import numpy as np
import pytest
import scipy.stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.base.errors import UserError
from src.data import image
from src.nets.nets import Nets
from src.scoring import comparison, evaluation, report
from tests.test_commands import is_picture, one_line


def test_details_are_means_over_measured_cells():
    rng = np.random.default_rng(0)
    true_m = rng.uniform(0.5, 9.9, (6, 1, 55, 74)).astype(np.float32)
    true_m[rng.random(true_m.shape) < 0.2] = 0
    true_m[:, 0, 0, 0] = 0
    predicted_m = rng.uniform(0.5, 9, true_m.shape).astype(np.float32)
    details = evaluation.Details()
    details.add(np.log(predicted_m[:4]), true_m[:4])
    details.add(np.log(predicted_m[4:]), true_m[4:])
    error = np.where(true_m > 0, np.abs(predicted_m - true_m) / np.where(true_m > 0, true_m, 1), np.nan)
    np.testing.assert_allclose(details.error_by_cell()[0, 1:], np.nanmean(error[:, 0, 0, 1:], 0), rtol=1e-5)
    assert np.isnan(details.error_by_cell()[0, 0])
    edges, by_depth, share = details.error_by_depth()
    near = (true_m >= 1.0) & (true_m < 1.5)
    assert by_depth[np.flatnonzero(edges == 1.0)[0]] == pytest.approx(error[near].mean(), rel=1e-5)
    assert share.sum() == pytest.approx(1)
    assert details.medians_m[2] == pytest.approx(
        (np.median(predicted_m[2][true_m[2] > 0]), np.median(true_m[2][true_m[2] > 0])), rel=1e-5
    )


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.pictures, self.cells, self.outside = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name == "src" and value.startswith("data:image/png;base64,"):
                self.pictures.append(base64.b64decode(value.partition(",")[2]))
            elif name in ("src", "href"):
                self.outside.append(value)

    def handle_data(self, data):
        self.cells.append(data.strip())


@pytest.fixture(scope="module")
def evaluated(nyu, forked, trained, tmp_path_factory):
    """Three evaluations of the small training: in plain, "a flipped" and eigen; and what the last one printed."""
    folder, checkpoints = tmp_path_factory.mktemp("evaluated"), trained / "Model" / "Ckpt"
    for name, data, more in (
        ("plain", nyu, ["--baselines"]),
        ("a flipped", nyu, ["--baselines", "--flip_average"]),
        ("eigen", nyu / "Test", ["--baselines", "--protocol", "eigen"]),
    ):
        result = forked(
            "eval.py",
            "--test_data",
            data,
            "--coarse_ckpt_model",
            checkpoints / "FinalCoarseNet.ckpt",
            "--fine_ckpt_model",
            checkpoints / "FinalFineNet.ckpt",
            *more,
            "--output_dir",
            name,
            cwd=folder,
        )
        assert result.returncode == 0, result.stdout + result.stderr
    return folder, result.stdout


def test_the_files_of_an_evaluation_are_complete_and_agree(evaluated, trained):
    folder, output = evaluated
    assert {"constant depth", "mean training map", "CoarseNet", "FineNet"} <= {
        line.split("  ")[0] for line in output.splitlines()
    }
    facts = json.loads((folder / "eigen" / "metrics.json").read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    assert facts["protocol"] == "eigen" and facts["images"] == 4 and facts["versions"]["mindspore"] == ms.__version__
    assert facts["checkpoints"] == {
        net: str(trained / "Model" / "Ckpt" / f"Final{net}.ckpt") for net in ("CoarseNet", "FineNet")
    }
    one = facts["metrics"]["FineNet"]
    assert one["rmse_mean_over_images"] == one["rmse"] <= one["rmse_pooled_over_pixels"] + 1e-12
    with open(folder / "eigen" / "per_image.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["net"] == "FineNet"]
    assert [row["image"] for row in rows] == ["00000", "00001", "00002", "00003"]
    assert np.mean([float(row["abs_rel"]) for row in rows]) == pytest.approx(one["abs_rel"])
    assert is_picture(folder / "eigen" / "panels.png")


def test_the_report_is_one_file_with_the_numbers_and_pictures(evaluated):
    folder = evaluated[0] / "eigen"
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert not page.outside and "http" not in re.sub(r"base64,[^\"]*", "", text)
    assert len(page.pictures) == 5
    for picture in page.pictures:
        decoded = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
        assert min(decoded.shape[:2]) > 250 and decoded.std() > 10
    assert len({cv2.imdecode(np.frombuffer(one, np.uint8), 1).shape[1] for one in page.pictures[1:]}) == 1
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    for net in ("constant depth", "mean training map", "CoarseNet", "FineNet"):
        row = page.cells.index(net) + 1
        assert page.cells[row : row + 8] == [
            f"{metrics[net][name]:.3f}"
            for name in ("delta1", "delta2", "delta3", "abs_rel", "sq_rel", "rmse", "rmse_log", "si")
        ]
    assert any("rows 45..471" in cell for cell in page.cells)


@pytest.fixture(scope="module")
def watched(nyu, fine_stage, forked, tmp_path_factory):
    """Where FineNet was trained for an epoch and resumed for a second one, watched; and the steps that its panels
    showed after each."""
    folder, steps = tmp_path_factory.mktemp("watched"), []
    for more in (["--epochs_fine", 1], ["--epochs_fine", 2, "--resume"]):
        result = forked(
            "train.py",
            "--data_url",
            nyu,
            "--val_data",
            nyu,
            "--batch_size",
            2,
            *fine_stage,
            "--tensorboard",
            "--val_panels",
            *more,
            cwd=folder,
        )
        assert result.returncode == 0, result.stderr
        with np.load(folder / "Model" / "Log" / "fine_panels.npz") as saved:
            steps.append(sorted(saved.files))
    return folder, steps


def test_tensorboard_gets_losses_rates_metrics_and_panels(watched):
    log = watched[0] / "Model" / "Log"
    events = EventAccumulator(str(log / "tensorboard" / "fine"), {"images": 0, "scalars": 0})
    events.Reload()
    tags = events.Tags()
    assert {
        f"fine/{name}" for name in ("loss", "mean_loss", "images_per_s", "learning_rate", "abs_rel", "delta1")
    } <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("fine/abs_rel")] == [4, 8]
    rows = (log / "fine.csv").read_text().splitlines()
    logged = [line.split(",")[rows[0].split(",").index("mean_loss")] for line in rows[1:]]
    assert [event.value for event in events.Scalars("fine/mean_loss")] == pytest.approx(
        [float(value) for value in logged if value], rel=1e-6
    )
    picture = cv2.imdecode(np.frombuffer(events.Images("fine/panels")[-1].encoded_image_string, np.uint8), 1)
    assert min(picture.shape[:2]) > 400 and picture.std() > 10


def test_a_training_shows_how_a_net_learns_and_what_it_has_to_beat(
    nyu, watched, fine_stage, evaluated, forked, tmp_path
):
    folder, steps = watched
    assert steps == [["4"], ["4", "8"]]
    checkpoint, log = fine_stage[-1], folder / "Model" / "Log"
    with np.load(log / "fine_panels.npz") as saved:
        shown = saved["8"]
    assert cv2.imread(str(log / "fine_panels.png")).std() > 10
    assert shown.shape == (4, 55, 74)
    fine = folder / "Model" / "Ckpt" / "FinalFineNet.ckpt"
    paths = sorted((nyu / "Test").glob("*_colors.png"))
    pictures = np.stack([image.network_rgb(image.load_rgb(path)) for path in paths])
    predict = Nets(checkpoint, fine)
    np.testing.assert_allclose(shown, np.exp(predict(pictures)["FineNet"][:, 0]), rtol=1e-4)
    expected = json.loads((evaluated[0] / "plain" / "metrics.json").read_text())["metrics"]["mean training map"]
    measured = json.loads((log / "mean_map.json").read_text())
    for name in ("delta1", "abs_rel", "rmse_log"):
        assert measured[name] == pytest.approx(expected[name], abs=1e-5)
    refused = forked("train.py", "--data_url", nyu, "--val_panels", cwd=tmp_path)
    assert refused.returncode == 2 and "--val_panels has no effect here: it needs --val_data" in refused.stderr


def test_two_evaluations_side_by_side(evaluated, forked, tmp_path):
    folder, _ = evaluated
    result = forked("eval.py", "--compare", "plain", folder / "a flipped" / "metrics.json", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "mean training map: the same" in result.stdout
    metrics = [
        json.loads((folder / name / "metrics.json").read_text())["metrics"]["FineNet"]
        for name in ("plain", "a flipped")
    ]
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
        assert expected in one_line(forked("eval.py", "--compare", "plain", other, cwd=folder))


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
        expected = scipy.stats.bootstrap(
            (differences[:, column],), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(2)
        ).confidence_interval
        assert (low[column], high[column]) == pytest.approx(tuple(expected), abs=0.002)


def test_the_median_prediction_over_true_depth():
    rng, details = np.random.default_rng(0), evaluation.Details()
    predicted, true = rng.uniform(1, 9, (4, 1, 55, 74)), rng.integers(1, 4, (4, 1, 55, 74)).astype(np.float32) + 0.5
    true[:, :, :5] = 0
    details.add(np.log(predicted), true)
    edges, counts, median = details.predicted_over_true()
    assert counts.sum() == (true > 0).sum()
    for metres in (1.5, 2.5, 3.5):
        place = np.searchsorted(edges, metres, "right") - 1
        assert counts[place].sum() == (true == metres).sum()
        assert abs(median[place] - np.median(predicted[true == metres])) <= 0.2
    assert np.isnan(median[np.searchsorted(edges, 5.5)])


def test_published_figures_stand_beside_a_set_of_their_size_only(tmp_path):
    rng = np.random.default_rng(0)
    scores, details = evaluation.Scores("depthnet"), evaluation.Details()
    log_depth, depth_m = rng.normal(1, 0.1, (3, 1, 55, 74)), rng.uniform(1, 4, (3, 1, 55, 74)).astype(np.float32)
    scores.add(["a", "b", "c"], log_depth, depth_m)
    details.add(log_depth, depth_m)
    for pairs in (60, 654):
        report.write(
            tmp_path / "r.html",
            {"FineNet": scores},
            {"FineNet": details},
            b"",
            {},
            {},
            {"pairs": pairs, "fingerprint": "0123"},
        )
        text = (tmp_path / "r.html").read_text()
        assert ("model zoo, Ascend 910" in text) == (pairs == 654)
        assert f"{pairs} pairs, fingerprint 0123" in text
