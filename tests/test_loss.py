"""The losses against float64 NumPy, and their gradients against PyTorch autograd."""

import mindspore as ms
import numpy as np
import pytest
import torch

from src.loss import CompositeLoss, ScaleInvariantLoss
from tests.twins import composite_loss


def example(batch=3, holes=False):
    rng = np.random.default_rng(0)
    log_depth = rng.normal(0.8, 0.5, (batch, 1, 55, 74)).astype(np.float32)
    depth_m = rng.uniform(0.05, 11, (batch, 1, 55, 74)).astype(np.float32)  # beyond the clip on both sides
    if holes:
        depth_m[rng.random(depth_m.shape) < 0.3] = 0
        depth_m[:, :, 10:20] = 0
    return log_depth, depth_m


def reference(log_depth, depth_m, composite, balance=0.5):
    """The formulas, image by image, over explicit lists of pixels. Tensors in, tensor out."""
    losses = []
    for predicted, target in zip(log_depth[:, 0], depth_m[:, 0], strict=True):
        valid = target > 0
        d = torch.log(target.clamp(0.1, 10)) - predicted
        n = valid.sum()
        values = d[valid]
        loss = (values**2).sum() / n - balance * values.sum() ** 2 / n**2
        if composite:
            down = (d[1:] - d[:-1])[valid[1:] & valid[:-1]]
            right = (d[:, 1:] - d[:, :-1])[valid[:, 1:] & valid[:, :-1]]
            loss = loss + values.abs().sum() / n + (down.abs().sum() + right.abs().sum()) / n
        losses.append(loss)
    return torch.stack(losses).mean()


def numpy_without_holes(log_depth, depth_m, composite):
    d = np.log(np.clip(depth_m.astype(np.float64), 0.1, 10)) - log_depth.astype(np.float64)
    n = d[0].size
    total = (d**2).sum((1, 2, 3)) / n - 0.5 * d.sum((1, 2, 3)) ** 2 / n**2
    if composite:
        edges = np.abs(np.diff(d, axis=2)).sum((1, 2, 3)) + np.abs(np.diff(d, axis=3)).sum((1, 2, 3))
        total += np.abs(d).sum((1, 2, 3)) / n + edges / n
    return total.mean()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("loss", "composite"), [(CompositeLoss, True), (ScaleInvariantLoss, False)])
def test_equals_the_formula_where_all_is_measured(loss, composite, batch):
    log_depth, depth_m = example(batch)
    ours = loss()(ms.Tensor(log_depth), ms.Tensor(depth_m))
    assert ours.shape == ()
    assert float(ours) == pytest.approx(numpy_without_holes(log_depth, depth_m, composite), rel=1e-5)


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize(("loss", "composite"), [(CompositeLoss, True), (ScaleInvariantLoss, False)])
def test_value_and_gradient_equal_autograd(loss, composite, holes):
    log_depth, depth_m = example(holes=holes)
    value, gradient = ms.value_and_grad(loss())(ms.Tensor(log_depth), ms.Tensor(depth_m))
    x = torch.tensor(log_depth, dtype=torch.float64, requires_grad=True)
    expected = reference(x, torch.tensor(depth_m, dtype=torch.float64), composite)
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(gradient.asnumpy(), x.grad.numpy(), rtol=1e-4, atol=1e-8)


def test_the_benchmarks_train_on_the_same_loss():
    log_depth, depth_m = (torch.tensor(array, dtype=torch.float64) for array in example(holes=True))
    assert composite_loss(log_depth, depth_m).item() == pytest.approx(reference(log_depth, depth_m, True).item())


@pytest.mark.parametrize("loss", [CompositeLoss, ScaleInvariantLoss])
def test_unmeasured_pixels_have_no_say(loss):
    log_depth, depth_m = example(holes=True)
    changed = np.where(depth_m > 0, log_depth, log_depth + 100).astype(np.float32)
    ours, other = (float(loss()(ms.Tensor(x), ms.Tensor(depth_m))) for x in (log_depth, changed))
    assert ours == other


@pytest.mark.parametrize("loss", [CompositeLoss, ScaleInvariantLoss])
def test_an_image_with_nothing_measured_costs_nothing(loss):
    log_depth, _ = example(1)
    assert float(loss()(ms.Tensor(log_depth), ms.Tensor(np.zeros_like(log_depth)))) == 0


@pytest.mark.parametrize(("loss", "expected"), [(CompositeLoss, 0.5 * 0.36 + 0.6), (ScaleInvariantLoss, 0.5 * 0.36)])
def test_an_image_with_one_measured_pixel_is_its_error(loss, expected):
    depth_m = np.zeros((1, 1, 55, 74), np.float32)
    depth_m[0, 0, 20, 30] = 2
    log_depth = np.full_like(depth_m, np.log(2) - 0.6)
    assert float(loss()(ms.Tensor(log_depth), ms.Tensor(depth_m))) == pytest.approx(expected, abs=1e-6)


def test_a_common_scale_error_costs_half_with_balance_half():
    """d constant = c: the scale-invariant loss is c^2 - balance c^2."""
    depth_m = np.full((1, 1, 55, 74), 2.0, np.float32)
    log_depth = np.full_like(depth_m, np.log(2) - 0.6)
    for balance in (0.0, 0.5, 1.0):
        value = float(ScaleInvariantLoss(balance)(ms.Tensor(log_depth), ms.Tensor(depth_m)))
        assert value == pytest.approx((1 - balance) * 0.36, abs=1e-6)
