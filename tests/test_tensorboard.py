"""What a training shows while it runs: TensorBoard's events and panels."""

import json

import cv2
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.data import image
from src.nets.nets import Nets


@pytest.fixture(scope="module")
def watched(nyu, fine_stage, forked, tmp_path_factory):
    """Where FineNet was trained for an epoch and resumed for a second one, watched; and the steps that its panels
    showed after each."""
    folder, steps = tmp_path_factory.mktemp("watched"), []
    for more in (["--epochs_fine", 1], ["--epochs_fine", 2, "--resume"]):
        result = forked(
            f"train.py --data_url {nyu} --val_data {nyu} --batch_size 2",
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
    refused = forked(f"train.py --data_url {nyu} --val_panels", cwd=tmp_path)
    assert refused.returncode == 2 and "--val_panels has no effect here: it needs --val_data" in refused.stderr
