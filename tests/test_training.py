"""The training step and loop, in process; the command itself is in test_commands.py."""

import mindspore as ms
import numpy as np
import pytest
import torch

from src import data_loader, image, metrics
from src.loss import CompositeLoss
from src.net import CoarseNet, FineNet, PaperCoarseNet
from src.training import Trainer


@pytest.fixture(scope="module")
def batch(nyu):
    """Two training pairs as they are, not augmented."""
    pairs = data_loader.list_train(nyu)[:2]
    rgb = np.stack([image.network_rgb(image.load_rgb(pair.rgb)) for pair in pairs])
    return rgb, np.stack([image.network_depth(image.load_train_depth(pair.depth)) for pair in pairs])


def train_until(trainer, batch, share, most):
    first = loss = trainer.run_step(*batch)[0]
    while loss > share * first and trainer.step < most:
        loss, _ = trainer.run_step(*batch)
    return first, loss


def test_a_tiny_set_is_overfitted(batch):
    ms.set_seed(0)
    trainer = Trainer(CoarseNet(), "composite", 3e-4)
    first, last = train_until(trainer, batch, 0.09, 400)
    assert last < 0.1 * first
    assert metrics.evaluate(trainer.predict(batch[0]), batch[1])["delta1"].min() > 0.9


def test_the_fine_net_learns_on_top_of_a_coarse_prediction(batch):
    ms.set_seed(0)
    blurred = np.log(batch[1].mean((2, 3), keepdims=True)) * np.ones_like(batch[1])
    trainer = Trainer(FineNet(), "composite", 1e-3, inputs=lambda rgb: (rgb, ms.Tensor(blurred)))
    first, last = train_until(trainer, batch, 0.3, 60)
    assert last < 0.4 * first


def test_the_printed_loss_is_that_of_the_step_s_own_forward(batch):
    """The loss that a step returns is the one before its update."""
    ms.set_seed(0)
    net = FineNet()
    coarse = np.ones_like(batch[1])
    expected = CompositeLoss()(net(ms.Tensor(batch[0]), ms.Tensor(coarse)), ms.Tensor(batch[1]))
    trainer = Trainer(net, "composite", 1e-2, inputs=lambda rgb: (rgb, ms.Tensor(coarse)))
    assert trainer.run_step(*batch)[0] == pytest.approx(float(expected), rel=1e-6)
    assert trainer.run_step(*batch)[0] < float(expected)


def test_one_step_is_adam_s(batch):
    """FineNet's update against torch.optim.Adam on the same gradients."""
    ms.set_seed(0)
    net, coarse = FineNet(), ms.Tensor(np.ones_like(batch[1]))
    before = net.conv3.weight.asnumpy().copy()
    gradient = ms.value_and_grad(_FineLoss(net), None, net.trainable_params())(
        ms.Tensor(batch[0]), coarse, ms.Tensor(batch[1]))[1][2].asnumpy()
    Trainer(net, "composite", 1e-3, inputs=lambda rgb: (rgb, coarse)).run_step(*batch)
    weight = torch.nn.Parameter(torch.from_numpy(before))
    weight.grad = torch.from_numpy(gradient)
    torch.optim.Adam([weight], 1e-3, eps=1e-8).step()
    np.testing.assert_allclose(net.conv3.weight.asnumpy(), weight.detach().numpy(), atol=2e-6)


class _FineLoss(ms.nn.Cell):
    def __init__(self, net):
        super().__init__(auto_prefix=False)
        self.net, self.loss = net, CompositeLoss()

    def construct(self, rgb, coarse, depth_m):
        return self.loss(self.net(rgb, coarse), depth_m)


def test_the_paper_net_trains_with_its_dropout_mask(batch):
    ms.set_seed(0)
    trainer = Trainer(PaperCoarseNet(), "scale_invariant", 1e-4)
    kept = np.random.default_rng(0).integers(0, 2, (2, 4096)).astype(np.float32)
    losses = [trainer.run_step(*batch, kept)[0] for _ in range(8)]
    assert losses[-1] < 0.5 * losses[0]
    assert trainer.predict(batch[0]).shape == (2, 1, 55, 74)


def test_gradients_do_not_vary_from_run_to_run(batch):
    """MindSpore's CPU kernels choose their number of threads after five runs: no result may depend on it."""
    ms.set_seed(0)
    net = FineNet()
    gradient = ms.value_and_grad(_FineLoss(net), None, net.trainable_params())
    arguments = [ms.Tensor(array) for array in (batch[0], np.ones_like(batch[1]), batch[1])]
    first = [g.asnumpy() for g in gradient(*arguments)[1]]
    for _ in range(9):
        for ours, theirs in zip(gradient(*arguments)[1], first, strict=True):
            np.testing.assert_array_equal(ours.asnumpy(), theirs)
