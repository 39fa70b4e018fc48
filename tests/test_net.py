"""The networks against twins written in PyTorch from the paper and the design table, with the same weights."""

import mindspore as ms
import numpy as np
import pytest
import torch

from src.net import CoarseNet, FineNet, PaperCoarseNet
from tests.twins import coarse_twin, fine_twin, paper_twin, weights


@pytest.fixture(scope="module")
def rgb():
    return np.random.default_rng(0).random((2, 3, 228, 304), np.float32)


def randomise(net, scale=1.0):
    """Weights and biases that are all different, so that no layer or bias can be missing unnoticed."""
    rng = np.random.default_rng(1)
    for parameter in net.get_parameters():
        fan_in = np.prod(parameter.shape[1:]) if parameter.ndim > 1 else 100
        values = rng.normal(0, scale / np.sqrt(fan_in), parameter.shape).astype(np.float32)
        parameter.set_data(ms.Tensor(values))


@pytest.mark.parametrize(("build", "twin"), [(CoarseNet, coarse_twin), (PaperCoarseNet, paper_twin)])
def test_coarse_nets_equal_their_twins(build, twin, rgb):
    net = build()
    randomise(net)
    ours = net(ms.Tensor(rgb)).asnumpy()
    theirs = twin(weights(net), torch.from_numpy(rgb)).numpy()
    assert ours.shape == (2, 1, 55, 74)
    assert np.abs(theirs).max() > 0.01  # the comparison means something
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_fine_net_equals_its_twin(rgb):
    net, coarse = FineNet(), np.random.default_rng(2).normal(1, 0.5, (2, 1, 55, 74)).astype(np.float32)
    randomise(net)
    ours = net(ms.Tensor(rgb), ms.Tensor(coarse)).asnumpy()
    theirs = fine_twin(weights(net), torch.from_numpy(rgb), torch.from_numpy(coarse)).numpy()
    assert np.abs(theirs).max() > 0.01
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_dropout_mask_scales_the_kept_units(rgb):
    net, kept = PaperCoarseNet(), np.random.default_rng(3).integers(0, 2, (2, 4096)).astype(np.float32)
    randomise(net)
    ours = net(ms.Tensor(rgb), ms.Tensor(kept)).asnumpy()
    theirs = paper_twin(weights(net), torch.from_numpy(rgb), torch.from_numpy(kept)).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("build", "count"), [(CoarseNet, 21_899_723), (FineNet, 119_309)])
def test_parameter_counts(build, count):
    assert sum(p.size for p in build().get_parameters()) == count


def test_parameter_names_are_those_of_the_published_checkpoints():
    middle = ["deconv6", "conv7", "deconv8"]
    layers = [*(f"conv{n}" for n in range(1, 6)), *middle, *(f"conv{n}" for n in range(9, 13)), "fc13"]
    expected = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    assert [p.name for p in CoarseNet().get_parameters()] == expected
    assert [p.name for p in FineNet().get_parameters()] == ["conv1.weight", "conv2.weight", "conv3.weight"]


def test_fine_net_starts_at_a_normal_distribution_of_0_01():
    stacked = np.concatenate([p.asnumpy().ravel() for p in FineNet().get_parameters()])
    assert abs(stacked.mean()) < 2e-4
    assert abs(stacked.std() - 0.01) < 2e-4


def test_coarse_net_starts_near_zero_log_depth(rgb):
    """Whatever the seed: the composite loss is to start near 1.7 on NYU, which is what a prediction of 1 m costs."""
    for seed in range(3):
        ms.set_seed(seed)
        assert np.abs(CoarseNet()(ms.Tensor(rgb)).asnumpy()).mean() < 0.2
