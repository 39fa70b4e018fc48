"""The training losses; the metrics are re-exported from src.metrics.

Call as `loss(log_depth, depth_m)` with predicted log depth and target metres, both (N, 1, H, W). Returns a scalar, the
mean over the batch. Target pixels of 0 are not measured and do not count.
"""

import mindspore as ms
from mindspore import nn, ops

from src.metrics import DEPTH_RANGE_M, evaluate

__all__ = ["LOSSES", "CompositeLoss", "ScaleInvariantLoss", "evaluate"]


class _LogDepthLoss(nn.Cell):
    def __init__(self, balance: float) -> None:
        super().__init__()
        self.balance = balance
        self.low, self.high = DEPTH_RANGE_M

    def log_difference(self, log_depth: ms.Tensor, depth_m: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        """Return d = log(clip(target, 0.1, 10)) - log_depth, 0 where not measured, and the mask of measured pixels."""
        measured = (depth_m > 0).astype(log_depth.dtype)
        # log1p, because on CPU the rounding of ops.log depends on how threads split its input, which varies.
        log_target = ops.log1p(ops.clamp(depth_m, self.low, self.high) - 1)
        return (log_target - log_depth) * measured, measured

    def scale_invariant(self, difference: ms.Tensor, count: ms.Tensor) -> ms.Tensor:
        """Return sum(d^2)/n - balance (sum d)^2/n^2 (equation 4 of the paper) of each image: (N,)."""
        mean = _image_sum(difference) / count
        return _image_sum(difference * difference) / count - self.balance * mean * mean


def _image_sum(values: ms.Tensor) -> ms.Tensor:
    return values.sum((1, 2, 3))


def _pixel_count(measured: ms.Tensor) -> ms.Tensor:
    return ops.maximum(_image_sum(measured), 1.0)


class ScaleInvariantLoss(_LogDepthLoss):
    """The paper's loss (section 3.3, equation 4): sum(d^2)/n - balance (sum d)^2/n^2."""

    def __init__(self, balance: float = 0.5) -> None:
        super().__init__(balance)

    def construct(self, log_depth: ms.Tensor, depth_m: ms.Tensor) -> ms.Tensor:
        difference, measured = self.log_difference(log_depth, depth_m)
        return self.scale_invariant(difference, _pixel_count(measured)).mean()


class CompositeLoss(_LogDepthLoss):
    """L1 plus the gradients of d plus the scale-invariant loss: the model zoo's training loss.

    sum|d|/n + (sum|d_y d| + sum|d_x d|)/n + sum(d^2)/n - balance (sum d)^2/n^2, with forward differences
    (0 at the last row and column, and wherever one of their two pixels is not measured).
    """

    def __init__(self, balance: float = 0.5) -> None:
        super().__init__(balance)

    def construct(self, log_depth: ms.Tensor, depth_m: ms.Tensor) -> ms.Tensor:
        d, measured = self.log_difference(log_depth, depth_m)
        down = (d[:, :, 1:] - d[:, :, :-1]) * measured[:, :, 1:] * measured[:, :, :-1]
        right = (d[:, :, :, 1:] - d[:, :, :, :-1]) * measured[:, :, :, 1:] * measured[:, :, :, :-1]
        count = _pixel_count(measured)
        absolute = _image_sum(ops.abs(d)) + _image_sum(ops.abs(down)) + _image_sum(ops.abs(right))
        return (absolute / count + self.scale_invariant(d, count)).mean()


LOSSES = {"composite": CompositeLoss, "scale_invariant": ScaleInvariantLoss}
