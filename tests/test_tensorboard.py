"""What a training shows while it runs: TensorBoard's events and panels."""

import json

import cv2
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.data import image, listing
from src.nets import checkpoint
from tests.test_commands import one_line


@pytest.fixture(scope="module")
def watched(nyu, forked, tmp_path_factory):
    """Where nets of one convolution were trained for an epoch and FineNet's resumed for a second one, watched; and the
    steps that its panels showed after each."""
    folder, steps = tmp_path_factory.mktemp("watched"), []
    line = f"train_tiny --data_url {nyu} --val_data {nyu} --batch_size 2 --epochs_coarse 1 --tensorboard --val_panels"
    for more in ("--epochs_fine 1", "--epochs_fine 2 --resume"):
        result = forked(f"{line} {more}", cwd=folder)
        assert result.returncode == 0, result.stderr
        with np.load(folder / "Model" / "Log" / "fine_panels.npz") as saved:
            steps.append(sorted(saved.files))
    return folder / "Model", steps


def test_tensorboard_gets_losses_rates_metrics_and_panels(watched):
    log = watched[0] / "Log"
    events = EventAccumulator(str(log / "tensorboard" / "fine"), {"images": 0, "scalars": 0})
    events.Reload()
    names = ("loss", "mean_loss", "images_per_s", "learning_rate", "abs_rel", "delta1")
    assert {f"fine/{name}" for name in names} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("fine/abs_rel")] == [4, 8]
    rows = [line.split(",") for line in (log / "fine.csv").read_text().splitlines()]
    logged = [float(row[rows[0].index("mean_loss")]) for row in rows[1:] if row[rows[0].index("mean_loss")]]
    assert [event.value for event in events.Scalars("fine/mean_loss")] == pytest.approx(logged, rel=1e-6)
    picture = cv2.imdecode(np.frombuffer(events.Images("fine/panels")[-1].encoded_image_string, np.uint8), 1)
    assert min(picture.shape[:2]) > 400 and picture.std() > 10


def test_a_training_shows_how_a_net_learns_and_what_it_has_to_beat(nyu, watched, evaluated, forked, tmp_path):
    folder, steps = watched
    assert steps == [["4"], ["4", "8"]]
    with np.load(folder / "Log" / "fine_panels.npz") as saved:
        shown = saved["8"]
    assert cv2.imread(str(folder / "Log" / "fine_panels.png")).std() > 10
    rgb = np.stack([image.network_rgb(image.load_rgb(pair.rgb)) for pair in listing.list_test(nyu)])
    log_depth = 0
    for net in ("Coarse", "Fine"):  # whose sum is forks.py's FineNet
        arrays = checkpoint.load(folder / "Ckpt" / f"Final{net}Net.ckpt").arrays
        weight, bias = (torch.from_numpy(arrays[f"conv.{name}"]) for name in ("weight", "bias"))
        log_depth = log_depth + torch.nn.functional.conv2d(torch.from_numpy(rgb), weight, bias, 4)
    np.testing.assert_allclose(shown, log_depth[:, 0].exp(), rtol=1e-4)
    expected = json.loads((evaluated / "plain" / "metrics.json").read_text())["metrics"]["mean training map"]
    measured = json.loads((folder / "Log" / "mean_map.json").read_text())
    for name in ("delta1", "abs_rel", "rmse_log"):
        assert measured[name] == pytest.approx(expected[name], abs=1e-5)
    refused = one_line(forked(f"train.py --data_url {nyu} --val_panels", cwd=tmp_path))
    assert "--val_panels has no effect here: it needs --val_data" in refused
