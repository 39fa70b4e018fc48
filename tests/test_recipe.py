"""Rates, decay, clipping and averaging against PyTorch and closed forms; the starts of the nets."""

import functools
import math
import os
import signal
import subprocess
import sys
import time

import cv2
import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import nn
from torch.nn import functional as F

from src import closed_form
from src.data import augmentation, sampling
from src.data.plain import PlainPairs
from src.data.sampling import Schedule
from src.data_loader import TrainingData
from src.net import CoarseNet, FineNet, PaperCoarseNet
from src.training import stages
from src.training.recipe import AVERAGE_INTERVAL, Recipe
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
    return [(rng.integers(0, 256, (4, 3, SIZE, SIZE), dtype=np.uint8),
             rng.uniform(0.5, 9, (4, 1, SIZE, SIZE)).astype(np.float32)) for _ in range(count)]


def test_the_updates_are_adamw_s_with_warm_up_cosine_and_clipping():
    ms.set_seed(0)
    net, steps, rate, scale, decay, norm = SmallNet(), 12, 1e-2, 0.1, 0.5, 0.7
    weights = {p.name: torch.nn.Parameter(torch.from_numpy(p.asnumpy().copy())) for p in net.get_parameters()}
    optimizers = {name: torch.optim.AdamW([weight], 1.0, eps=1e-16,
                                          weight_decay=decay if name == "conv1.weight" else 0)
                  for name, weight in weights.items()}
    trainer = Trainer(net, "scale_invariant", rate, recipe=Recipe("cosine", 4, scale, decay, norm), last_step=steps)
    for step, (rgb, depth_m) in enumerate(small_batches(steps)):
        trainer.run_step(rgb, depth_m)
        x = F.conv2d(torch.from_numpy(rgb).float() / 255, weights["conv1.weight"], weights["conv1.bias"], padding=1)
        d = torch.log(torch.from_numpy(depth_m)).flatten(1) - F.linear(
            x.flatten(1), weights["fc13.weight"], weights["fc13.bias"])
        ((d**2).mean(1) - 0.5 * d.mean(1)**2).mean().backward()
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


def test_the_averaged_weights_are_what_is_kept():
    ms.set_seed(0)
    trainer, expected = Trainer(SmallNet(), "composite", 1e-2, recipe=Recipe(ema=0.9)), None
    for step, batch in enumerate(small_batches(20), 1):
        trainer.run_step(*batch)
        now = trainer.parameters["fc13.weight"].asnumpy().astype(np.float64)
        if step == 1:
            expected = now
        elif step % AVERAGE_INTERVAL == 0:
            stays = min(0.9, (1 + step) / (10 + step))**AVERAGE_INTERVAL
            expected = stays * expected + (1 - stays) * now
    own = trainer.parameters["fc13.weight"].asnumpy().copy()
    np.testing.assert_allclose(trainer.weights()["fc13.weight"].asnumpy(), expected, atol=1e-6)
    with trainer.averaged():
        np.testing.assert_allclose(trainer.parameters["fc13.weight"].asnumpy(), expected, atol=1e-6)
    np.testing.assert_array_equal(trainer.parameters["fc13.weight"].asnumpy(), own)
    assert np.abs(own - expected).max() > 1e-3


def test_a_run_with_everything_resumes_exactly_and_refuses_another_recipe(nyu, forked, fine_stage, tmp_path):
    arguments = ["--data_url", str(nyu), *fine_stage, "--augmentation", "paper", "--batch_size", "1", "--max_steps",
                 "6", "--lr_schedule", "cosine", "--warmup_steps", "2", "--ema", "0.9", "--weight_decay", "0.01",
                 "--clip_norm", "5", "--fine_start", "coarse", "--save_checkpoint_steps", "2"]
    assert forked("train.py", *arguments, "--train_url", "unbroken", cwd=tmp_path).returncode == 0
    process = subprocess.Popen([sys.executable, ROOT / "train.py", *arguments, "--train_url", "stopped"], cwd=tmp_path,
                               stdout=subprocess.DEVNULL)
    while not (tmp_path / "stopped" / "Ckpt" / "FineNet_2.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert not (tmp_path / "stopped" / "Ckpt" / "FinalFineNet.ckpt").exists()
    changed = forked("train.py", *arguments, "--train_url", "stopped", "--resume", "--max_steps", 5, "--ema", 0,
                     cwd=tmp_path)
    assert "ema was 0.9, now None" in one_line(changed) and "steps was 6, now 5" in changed.stderr
    assert forked("train.py", *arguments, "--train_url", "stopped", "--resume", cwd=tmp_path).returncode == 0
    for name in ("FineNet_6.ckpt", "FinalFineNet.ckpt"):
        assert (tmp_path / "stopped" / "Ckpt" / name).read_bytes() == \
            (tmp_path / "unbroken" / "Ckpt" / name).read_bytes(), name


@pytest.mark.parametrize(("options", "expected"), [
    (["--start", "closed_form", "--mean_depth_start"], "--mean_depth_start has no effect here"),
    (["--start", "lsuv", "--pre_trained", "x.ckpt"], "--start has no effect here"),
    (["--ema", "1"], "argument --ema: 1 is not a number from 0 to below 1"),
    (["--weight_decay", "-1"], "argument --weight_decay: -1 is not a number from 0"),
])
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
        augmentation.augment_as_paper(np.full((240, 320, 3), 90, np.uint8), pixels,
                                     sampling.counter_rng(1, 0, sample), rgb_out, depth_out)
        measured = depth_out[depth_out > 0]
        assert np.ptp(measured) < 1e-5  # no hole has run into its neighbours
        assert 0.02 < (depth_out == 0).mean() < 0.25
        np.testing.assert_array_less(71, rgb_out.astype(int))


def test_unit_variance_goes_through_every_layer(nyu):
    ms.set_seed(0)
    net, data = PaperCoarseNet(), TrainingData(PlainPairs(nyu), Schedule(8, 4, seed=0), dropout_units=0)
    stages.unit_variance(net, data)
    x = torch.from_numpy(next(data.batches(0, 1))[0]).float() / 255
    w = {p.name: torch.from_numpy(p.asnumpy().copy()) for p in net.get_parameters()}
    for name, settings, pool in (("conv1", {"stride": 4}, True), ("conv2", {"padding": 2}, True),
                                 ("conv3", {"padding": 1}, False), ("conv4", {"padding": 1}, False),
                                 ("conv5", {"stride": 2}, False)):
        x = F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **settings)
        assert float(x.std()) == pytest.approx(1, rel=1e-3), name
        x = F.max_pool2d(F.relu(x), 2) if pool else F.relu(x)
    for name in ("fc6", "fc7"):
        x = F.linear(x.flatten(1), w[f"{name}.weight"], w[f"{name}.bias"])
        assert float(x.std()) == pytest.approx(1, rel=1e-3), name
        x = F.relu(x)


class ThriceNet(nn.Cell):
    """One layer applied three times, as CoarseNet's conv5 is."""

    def __init__(self):
        super().__init__()
        self.conv4 = nn.Conv2d(3, 8, 7, 4, has_bias=True, weight_init="normal", bias_init="zeros")
        self.conv5 = nn.Conv2d(8, 8, 3, has_bias=True, weight_init="normal", bias_init="zeros")
        self.relu = nn.ReLU()

    def construct(self, rgb):
        x = self.relu(self.conv4(rgb))
        for _ in range(3):
            x = self.relu(self.conv5(x))
        return x


def test_unit_variance_takes_a_layer_that_is_used_thrice_at_its_first_time(nyu):
    ms.set_seed(0)
    net, data = ThriceNet(), TrainingData(PlainPairs(nyu), Schedule(8, 1, seed=0))
    stages.unit_variance(net, data)
    rgb = ms.Tensor(next(data.batches(0, 1))[0].astype(np.float32) / 255)
    once = net.conv4(rgb)
    assert float(once.std()) == pytest.approx(1, rel=1e-3)
    assert float(net.conv5(net.relu(once)).std()) == pytest.approx(1, rel=1e-3)


def test_fine_net_starts_as_its_coarse_input_and_learns_from_there(nyu):
    ms.set_seed(0)
    net, coarse = FineNet(), np.random.default_rng(0).normal(0, 1, (2, 1, 55, 74)).astype(np.float32)
    net.start_as_identity()
    rgb, depth_m = next(TrainingData(PlainPairs(nyu), Schedule(8, 2, seed=0)).batches(0, 1))
    np.testing.assert_array_equal(net(ms.Tensor(rgb.astype(np.float32) / 255), ms.Tensor(coarse)).asnumpy(), coarse)
    trainer = Trainer(net, "composite", 1e-3, inputs=lambda rgb: (rgb, ms.Tensor(coarse)))
    losses = [trainer.run_step(rgb, depth_m)[0] for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]


@pytest.fixture(scope="module")
def solved(nyu, tmp_path_factory):
    """solved(kind): (a net in its closed form, the data of which it was solved: two pairs of each of two scenes). Its
    last layer may be changed."""
    few = tmp_path_factory.mktemp("few")
    for path in (nyu / "Train").glob("*/[12].*"):
        (few / "Train" / path.parent.name).mkdir(parents=True, exist_ok=True)
        (few / path.relative_to(nyu)).symlink_to(path)

    @functools.cache
    def solve(kind):
        ms.set_seed(0)
        net, data = kind(), TrainingData(PlainPairs(few), Schedule(4, 4, seed=3))
        closed_form.solve(net, data)
        return net, data

    return solve


@pytest.mark.long
@pytest.mark.parametrize("kind", [PaperCoarseNet, CoarseNet])
def test_closed_form_is_a_ridge_regression_on_what_the_net_sees(solved, kind):
    """The last layer against NumPy's least squares on what it sees; and the net has learnt."""
    net, data = solved(kind)
    samples = list(data.source.samples(range(4), 1, False))
    rgb = np.stack([one for _, rgb, _ in samples for one in (rgb, rgb[:, ::-1])]).transpose(0, 3, 1, 2)
    rgb = ms.Tensor(rgb.astype(np.float32) / 255)
    depth_m = np.stack([one for _, _, depth_m in samples for one in (depth_m, depth_m[:, ::-1])])
    units = net.features(rgb)
    if kind is PaperCoarseNet:
        units = net.relu(net.fc6(units))
    units = units.asnumpy().astype(np.float64)
    log_depth = np.log(np.clip(depth_m, 0.1, 10)).reshape(8, -1)
    assert (depth_m > 0).all()
    standard = (units - units.mean(0)) / (units.std(0) + 1e-6)
    fits = {}
    _, within = np.linalg.qr(standard.T)  # a ridge regression's weights lie in the span of its 8 rows
    for ridge in closed_form.RIDGES:
        system = np.vstack([within.T, math.sqrt(ridge) * np.eye(8)])
        right = np.vstack([log_depth - log_depth.mean(0), np.zeros((8, 4070))])[:, ::407]
        fits[ridge] = within.T @ np.linalg.lstsq(system, right, rcond=None)[0] + log_depth.mean(0)[::407]
    ours = net(rgb).asnumpy().reshape(8, -1)[:, ::407]
    before = {parameter.name: parameter.asnumpy().copy() for parameter in net.get_parameters()}
    closed_form.solve(net, data, design=False, ridge=1e4)  # its last layer again
    again = net(rgb).asnumpy().reshape(8, -1)[:, ::407]
    assert np.abs(again - fits[1e4]).max() < 2e-3
    for name, value in before.items():
        if not name.startswith(("fc7", "fc13")):
            np.testing.assert_array_equal(net.parameters_dict()[name].asnumpy(), value)
    assert min(np.abs(ours - fit).max() for fit in fits.values()) < 2e-3
    assert np.square(ours - log_depth[:, ::407]).mean() < 0.9 * log_depth[:, ::407].var(0).mean()


@pytest.mark.parametrize(("rows", "count"), [(40, 12), (12, 40)])
def test_the_ridge_regression_is_least_squares_with_the_weights_as_rows(rows, count):
    rng = np.random.default_rng(0)
    units = rng.normal(3, 2, (rows, count)) @ rng.normal(size=(count, count))
    log_depth = rng.normal(1, 0.3, (rows, 5))
    weight, bias = closed_form._ridge_regression(units, log_depth, 7.0)
    standard = (units - units.mean(0)) / (units.std(0) + 1e-6)
    system = np.vstack([standard, math.sqrt(7) * np.eye(count)])
    expected = np.linalg.lstsq(system, np.vstack([log_depth - log_depth.mean(0), np.zeros((count, 5))]), rcond=None)[0]
    np.testing.assert_allclose(units @ weight.T + bias, standard @ expected + log_depth.mean(0), atol=1e-9)


@pytest.mark.long
def test_coarse_net_s_last_map_holds_16_numbers_of_each_place(solved):
    """In its closed form: cell by cell the same combinations of conv5's channels, side by side."""
    net, data = solved(CoarseNet)
    x = rgb = ms.Tensor(np.stack([rgb for _, rgb, _ in data.source.samples(range(4), 1, False)])
                        .transpose(0, 3, 1, 2).astype(np.float32) / 255)
    for name in ("conv1", "conv2", "conv3", "conv4"):
        x = net.pool(net.relu(getattr(net, name)(x)))
    blur = torch.outer(*2 * [torch.tensor([1.0, 2, 1])]) / 16
    maps = torch.from_numpy(x.asnumpy())
    for _ in range(3):
        maps = F.conv2d(maps, blur.expand(512, 1, 3, 3), padding=1, groups=512)
    seen = net.features(rgb).asnumpy().reshape(4, 55, 74)
    for row, column in ((0, 1), (5, 30), (54, 74), (27, 3)):  # of the 56x76 cells before conv9 cuts them
        place = maps[:, :, row // 4, column // 4].numpy()
        half = (row % 4 // 2, column % 4 // 2)
        number = 2 * (row % 2) + column % 2
        weight = net.deconv6.weight.asnumpy()[:, number, half[0], half[1]]
        expected = place @ weight + net.deconv6.bias.asnumpy()[number]
        np.testing.assert_allclose(seen[:, row, column - 1], np.maximum(expected, 0), rtol=1e-3, atol=1e-3)


def test_closed_form_wants_two_scenes(nyu, forked, tmp_path):
    (tmp_path / "NYU" / "Train").mkdir(parents=True)
    os.symlink(next((nyu / "Train").iterdir()), tmp_path / "NYU" / "Train" / "one_out")
    result = forked("train.py", "--data_url", "NYU", "--coarse_net", "paper", "--batch_size", 1, "--start",
                    "closed_form", cwd=tmp_path)
    assert "1 scene of training pairs: expected two or more" in one_line(result)
