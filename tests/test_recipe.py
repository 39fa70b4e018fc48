"""Rates, decay, clipping and averaging against PyTorch and closed forms; the starts of the nets."""

import math
import signal
import subprocess
import sys
import time

import cv2
import mindspore as ms
import numpy as np
import pytest
import scipy.linalg
import torch
from mindspore import nn
from torch.nn import functional as F

from src.data import augmentation, sampling
from src.data.plain import PlainPairs
from src.data.sampling import Schedule
from src.data_loader import TrainingData
from src.net import FineNet
from src.nets import checkpoint
from src.training.options import Recipe
from src.training.recipe import AVERAGE_INTERVAL, Adam
from src.training.trainer import Trainer
from tests.conftest import ROOT
from tests.test_commands import one_line

SIZE = 8


class SmallNet(nn.Cell):
    """A convolution and a dense layer that starts as the identity, as CoarseNet's does."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 1, 3, has_bias=True, weight_init="normal")
        self.fc13 = nn.Dense(SIZE**2, SIZE**2, weight_init=ms.Tensor(np.eye(SIZE**2, dtype=np.float32)))

    def construct(self, rgb):
        return self.fc13(self.conv1(rgb).reshape((-1, SIZE**2))).reshape((-1, 1, SIZE, SIZE))


def small_batches(count):
    rng = np.random.default_rng(0)
    return [
        (
            rng.integers(0, 256, (4, 3, SIZE, SIZE), dtype=np.uint8),
            rng.uniform(0.5, 9, (4, 1, SIZE, SIZE)).astype(np.float32),
        )
        for _ in range(count)
    ]


def test_the_updates_are_adamw_s_with_warm_up_cosine_and_clipping():
    ms.set_seed(0)
    net, steps, rate, scale, decay, norm = SmallNet(), 12, 1e-2, 0.1, 0.5, 0.7
    weights = {p.name: torch.nn.Parameter(torch.from_numpy(p.asnumpy().copy())) for p in net.get_parameters()}
    optimizers = {
        name: torch.optim.AdamW([weight], 1.0, eps=1e-16, weight_decay=decay if name == "conv1.weight" else 0)
        for name, weight in weights.items()
    }
    trainer = Trainer(net, "scale_invariant", rate, recipe=Recipe("cosine", 4, scale, decay, norm), last_step=steps)
    for step, (rgb, depth_m) in enumerate(small_batches(steps)):
        trainer.run_step(rgb, depth_m)
        x = F.conv2d(torch.from_numpy(rgb).float() / 255, weights["conv1.weight"], weights["conv1.bias"], padding=1)
        d = torch.log(torch.from_numpy(depth_m)).flatten(1) - F.linear(
            x.flatten(1), weights["fc13.weight"], weights["fc13.bias"]
        )
        ((d**2).mean(1) - 0.5 * d.mean(1) ** 2).mean().backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), norm)
        now = rate * min((step + 1) / 4, 1) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        for name, optimizer in optimizers.items():
            optimizer.param_groups[0]["lr"] = now * (scale if name.startswith("fc") else 1)
            if name == "fc13.weight":
                with torch.no_grad():
                    weights[name] -= now * scale * decay * (weights[name] - torch.eye(SIZE**2))
            optimizer.step()
            optimizer.zero_grad()
    for name, weight in weights.items():
        # Where a gradient is next to nothing, Adam makes a step of its rounding.
        difference = np.abs(trainer.parameters[name].asnumpy() - weight.detach().numpy())
        assert difference.mean() < 4e-6 and np.quantile(difference, 0.99) < 2e-5, name


@pytest.mark.parametrize("rates", ["one", "groups"])
def test_an_update_that_is_left_out_changes_nothing_and_the_others_are_nn_adam_s(rates):
    ms.set_seed(0)
    rng, nets = np.random.default_rng(0), [SmallNet(), SmallNet()]
    for parameter, same in zip(nets[0].get_parameters(), nets[1].get_parameters(), strict=True):
        same.set_data(ms.Tensor(parameter.asnumpy()))
    groups = [
        net.trainable_params()
        if rates == "one"
        else [{"params": [parameter], "lr": 0.1 / place} for place, parameter in enumerate(net.get_parameters(), 1)]
        for net in nets
    ]
    ours, theirs = Adam(groups[0], 1e-2), nn.Adam(groups[1], 1e-2)
    for applied in (False, True, True, False, True):
        gradients = [rng.normal(size=parameter.shape).astype(np.float32) for parameter in nets[0].get_parameters()]
        if applied:
            theirs(tuple(map(ms.Tensor, gradients)))
        else:
            gradients[0][:], gradients[1][:] = np.nan, np.inf
        ours(tuple(map(ms.Tensor, gradients)), ms.Tensor(applied))
        for one, other in zip(ours.get_parameters(), theirs.get_parameters(), strict=True):
            np.testing.assert_array_equal(one.asnumpy(), other.asnumpy(), one.name)


def test_an_overflow_in_the_first_step_changes_nothing_with_any_recipe():
    ms.set_seed(0)
    trainer = Trainer(
        SmallNet(), "composite", 1e-2, amp_level="O2", recipe=Recipe("cosine", 2, 0.5, 0.1, 1.0, 0.9), last_step=9
    )
    trainer.scaler.scale_value.set_data(ms.Tensor(2.0**100, ms.float32))
    before = {name: parameter.asnumpy().copy() for name, parameter in trainer.state().items()}
    result = trainer.launch(*small_batches(1)[0])()
    assert not result.applied and math.isfinite(result.loss)
    for name, parameter in trainer.state().items():
        if name not in ("scale_value", "counter"):
            np.testing.assert_array_equal(parameter.asnumpy(), before[name], name)


def test_the_averaged_weights_are_what_is_kept():
    ms.set_seed(0)
    trainer, expected = Trainer(SmallNet(), "composite", 1e-2, recipe=Recipe(ema=0.9)), None
    for step, batch in enumerate(small_batches(20), 1):
        trainer.run_step(*batch)
        now = trainer.parameters["fc13.weight"].asnumpy().astype(np.float64)
        if step == 1:
            expected = now
        elif step % AVERAGE_INTERVAL == 0:
            stays = min(0.9, (1 + step) / (10 + step)) ** AVERAGE_INTERVAL
            expected = stays * expected + (1 - stays) * now
    own = trainer.parameters["fc13.weight"].asnumpy().copy()
    np.testing.assert_allclose(trainer.weights()["fc13.weight"].asnumpy(), expected, atol=1e-6)
    with trainer.averaged():
        np.testing.assert_allclose(trainer.parameters["fc13.weight"].asnumpy(), expected, atol=1e-6)
    np.testing.assert_array_equal(trainer.parameters["fc13.weight"].asnumpy(), own)
    assert np.abs(own - expected).max() > 1e-3


def test_a_run_with_everything_resumes_exactly_and_refuses_another_recipe(nyu, forked, fine_stage, tmp_path):
    arguments = [
        "--data_url",
        str(nyu),
        *fine_stage,
        "--augmentation",
        "paper",
        "--batch_size",
        "1",
        "--max_steps",
        "6",
        "--lr_schedule",
        "cosine",
        "--warmup_steps",
        "2",
        "--ema",
        "0.9",
        "--weight_decay",
        "0.01",
        "--clip_norm",
        "5",
        "--fine_start",
        "coarse",
        "--save_checkpoint_steps",
        "2",
    ]
    assert forked("train.py", *arguments, "--train_url", "unbroken", cwd=tmp_path).returncode == 0
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *arguments, "--train_url", "stopped"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
    )
    while not (tmp_path / "stopped" / "Ckpt" / "FineNet_2.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert not (tmp_path / "stopped" / "Ckpt" / "FinalFineNet.ckpt").exists()
    changed = forked(
        "train.py", *arguments, "--train_url", "stopped", "--resume", "--max_steps", 5, "--ema", 0, cwd=tmp_path
    )
    assert "ema was 0.9, now None" in one_line(changed) and "steps was 6, now 5" in changed.stderr
    assert forked("train.py", *arguments, "--train_url", "stopped", "--resume", cwd=tmp_path).returncode == 0
    for name in ("FineNet_6.ckpt", "FinalFineNet.ckpt"):
        assert (tmp_path / "stopped" / "Ckpt" / name).read_bytes() == (
            tmp_path / "unbroken" / "Ckpt" / name
        ).read_bytes(), name


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--start", "imagenet"], "--start has no effect here: it needs --coarse_net paper"),
        (["--start", "imagenet", "--coarse_net", "paper", "--pre_trained", "x.ckpt"], "--start has no effect here"),
        (["--ema", "1"], "argument --ema: 1 is not a number from 0 to below 1"),
        (["--weight_decay", "-1"], "argument --weight_decay: -1 is not a number from 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(nyu, forked, tmp_path, options, expected):
    result = forked("train.py", "--data_url", nyu, *options, cwd=tmp_path)
    assert result.returncode == 2 and expected in result.stderr
    assert not list(tmp_path.iterdir())


def test_the_paper_s_augmentation_moves_picture_and_depth_together():
    """On a plane of depth whose grey is its depth: what the net sees and its target are the same plane, turned, and
    zoomed as much as the depth is divided."""
    y, x = np.mgrid[:240, :320].astype(np.float32)
    plane = 40 + 0.4 * x + 0.3 * y
    pixels, rgb = np.rint(plane).astype(np.uint8), np.repeat(np.rint(plane)[..., None], 3, 2).astype(np.uint8)
    flips, scales, angles = 0, [], []
    for sample in range(40):
        rgb_out, depth_out = np.empty((3, 228, 304), np.uint8), np.empty((1, 55, 74), np.float32)
        augmentation.augment_as_paper(rgb, pixels, sampling.counter_rng(0, 0, sample), rgb_out, depth_out)
        inner = (slice(4, 51), slice(6, 68))  # corners may have turned in from outside
        seen = cv2.resize(rgb_out[1].astype(np.float64), (74, 55), interpolation=cv2.INTER_AREA)[inner]
        depth = depth_out[0].astype(np.float64)[inner] * 255 / 10
        assert (depth > 0).all()
        colour = np.median(seen / depth)
        np.testing.assert_allclose(seen, depth * colour, atol=1.5 * colour)
        down, right = (np.mean(part) for part in np.gradient(depth))  # a cell is 228/55 and 304/74 half pixels
        slope = np.array([right / (304 / 74), down / (228 / 55)])
        flip = slope[0] < 0
        flips += flip
        # depth falls by the scale, and so does its slope again by the zoom
        scales.append(math.sqrt(0.5 / np.hypot(*slope)))
        angles.append(np.degrees(np.arctan2(slope[1], abs(slope[0])) - np.arctan2(0.3, 0.4)))
    assert 10 < flips < 30
    assert 1 - 0.01 < min(scales) < 1.1 and 1.4 < max(scales) < 1.51
    assert -5.3 < min(angles) < -2 and 2 < max(angles) < 5.3


def test_the_paper_s_augmentation_keeps_holes():
    pixels = np.full((240, 320), 100, np.uint8)
    pixels[:, 150:170] = 0
    rgb_out, depth_out = np.empty((3, 228, 304), np.uint8), np.empty((1, 55, 74), np.float32)
    for sample in range(20):
        augmentation.augment_as_paper(
            np.full((240, 320, 3), 90, np.uint8), pixels, sampling.counter_rng(1, 0, sample), rgb_out, depth_out
        )
        measured = depth_out[depth_out > 0]
        assert np.ptp(measured) < 1e-5  # no hole has run into its neighbours
        assert 0.02 < (depth_out == 0).mean() < 0.25
        np.testing.assert_array_less(71, rgb_out.astype(int))


def test_fine_net_starts_as_its_coarse_input_and_learns_from_there(nyu):
    ms.set_seed(0)
    net, coarse = FineNet(), np.random.default_rng(0).normal(0, 1, (2, 1, 55, 74)).astype(np.float32)
    net.start_as_identity()
    rgb, depth_m = next(TrainingData(PlainPairs(nyu), Schedule(8, 2, seed=0)).batches(0, 1))
    np.testing.assert_array_equal(net(ms.Tensor(rgb.astype(np.float32) / 255), ms.Tensor(coarse)).asnumpy(), coarse)
    trainer = Trainer(net, "composite", 1e-3, inputs=lambda rgb: (rgb, ms.Tensor(coarse)))
    losses = [trainer.run_step(rgb, depth_m)[0] for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]


def test_the_imagenet_start_gives_the_convolutions_and_solves_the_dense_layers(nyu, forked, tmp_path):
    """The dense layers agree with SciPy's kernel ridge regression of whole log depth maps, as the maps of these pairs
    have fewer than 64 components."""
    options = ["--data_url", nyu, "--stage", "coarse", "--coarse_net", "paper", "--batch_size", 2, "--epochs_coarse", 0]
    result = forked("train.py", *options, "--start", "imagenet", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    net = checkpoint.load_coarse(tmp_path / "Model" / "Ckpt" / "FinalCoarseNet.ckpt")
    shipped = ms.load_checkpoint(str(ROOT / "weights" / "PaperCoarseNet_imagenet.ckpt"))
    for name, parameter in net.parameters_dict().items():
        if name.startswith("conv"):
            np.testing.assert_array_equal(parameter.asnumpy(), shipped[name].asnumpy().astype(np.float32))
    pairs = PlainPairs(nyu)
    rgb, depth_m = (np.stack(arrays) for arrays in zip(*map(pairs.load, range(len(pairs.names))), strict=True))
    assert (depth_m > 0).all()
    rgb = np.concatenate([rgb, rgb[:, :, ::-1]]).transpose(0, 3, 1, 2).astype(np.float32) / 255
    log_depth = np.log(np.concatenate([depth_m, depth_m[:, :, ::-1]]).clip(0.1, 10)).reshape(len(rgb), -1)
    features = net.features(ms.Tensor(rgb)).asnumpy().astype(np.float64)
    centred = features - features.mean(0)
    kernel = centred @ centred.T / (centred**2).sum(1).mean()
    dual = scipy.linalg.solve(kernel + 3 * np.eye(len(rgb)), log_depth - log_depth.mean(0), assume_a="pos")
    expected = kernel @ dual + log_depth.mean(0)
    np.testing.assert_allclose(net(ms.Tensor(rgb)).asnumpy().reshape(len(rgb), -1), expected, atol=1e-4)
    assert np.abs(expected - log_depth.mean(0)).max() > 0.05


@pytest.mark.long
def test_a_run_that_began_otherwise_is_gone_on_with(nyu, forked, tmp_path):
    """Earlier versions offered other first weights, which are named in their states."""
    command = ["train.py", "--data_url", nyu, "--stage", "coarse", "--coarse_net", "paper", "--batch_size", 1]
    assert forked(*command, "--max_steps", 1, cwd=tmp_path).returncode == 0
    state = tmp_path / "Model/Ckpt/CoarseNet_1.ckpt"
    saved = checkpoint.load(state)
    before = {**saved.info["options"], "start": "closed_form", "ridge": 1e4, "mean_depth_start": False}
    checkpoint.save(state, saved.arrays, {**saved.info, "options": before})
    result = forked(*command, "--max_steps", 2, "--resume", cwd=tmp_path)
    assert result.returncode == 0 and "resuming from" in result.stdout, result.stderr
