"""The graph of a training step, and its precision."""

import atexit
import contextlib
import functools
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import mindspore as ms
from mindspore import amp, nn, ops

from src.base.files import discarded_at_exit
from src.training.recipe import Decay, clipped


class TrainStep(nn.Cell):
    """Forward, backward and update.

    With a loss scaler, if gradients are not finite on any rank, all ranks skip the update and lower the loss scale.

    Args:
        net: takes the inputs, returns log depth.
        loss: takes log depth and target.
        optimizer: updates the parameters.
        scaler: scales the loss of fp16 compute; None for fp32.
        ranks: number of processes.
        decay: weight decay; or None.
        clip_norm: maximum global gradient norm; 0 disables clipping.

    Returns float32 (4 + len(votes)): the loss of this rank; the number of earlier updates; and, summed over the ranks
    in one reduction, the loss, the number of overflows, and the `votes`.
    """

    def __init__(
        self,
        net: nn.Cell,
        loss: nn.Cell,
        optimizer: nn.Optimizer,
        scaler: amp.DynamicLossScaler | None = None,
        ranks: int = 1,
        decay: Decay | None = None,
        clip_norm: float = 0.0,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.net, self.loss, self.optimizer, self.scaler, self.ranks = net, loss, optimizer, scaler, ranks
        self.decay, self.clip_norm = decay, clip_norm
        self.average: Any = None
        self.sum: Any = None
        if ranks > 1:
            self.average = nn.DistributedGradReducer(optimizer.parameters, mean=True, degree=ranks)
            self.sum = ops.AllReduce()
        self.concat = ops.Concat()
        self.gradient = ms.value_and_grad(self.scaled_loss, None, optimizer.parameters, has_aux=True)

    def scaled_loss(self, depth_m: ms.Tensor, *inputs: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        loss = self.loss(self.net(*inputs).astype(ms.float32), depth_m)
        if self.scaler is None:
            return loss, loss
        return self.scaler.scale(loss), loss

    @ms.jit
    def construct(self, votes: ms.Tensor, depth_m: ms.Tensor, *inputs: ms.Tensor) -> ms.Tensor:
        updates = self.optimizer.global_step.astype(ms.float32)
        (_, loss), gradients = self.gradient(depth_m, *inputs)
        if self.ranks > 1:
            gradients = self.average(gradients)
        overflow = ms.Tensor([0.0], ms.float32)
        if self.scaler is not None:
            gradients = self.scaler.unscale(gradients)
            # On Ascend 910A this reads a register of each chip, so the ranks may differ (MindSpore 2.10, amp.py).
            overflow = 1 - amp.all_finite(gradients).astype(ms.float32).reshape((1,))
        loss = loss.reshape((1,))
        shared = self.concat((loss, overflow, votes))
        if self.ranks > 1:
            shared = self.sum(shared)
        if self.scaler is None:
            self.update(gradients)
        else:
            finite = shared[1] < 0.5
            self.update(gradients, finite)
            self.scaler.adjust(finite)
        return self.concat((loss, updates, shared))

    def update(self, gradients: tuple[ms.Tensor, ...], applied: ms.Tensor | None = None) -> None:
        if self.clip_norm:
            gradients = clipped(gradients, self.clip_norm)
        if self.decay is not None:
            self.decay(self.optimizer.global_step, applied)
        self.optimizer(gradients, applied)


def in_precision(net: nn.Cell, amp_level: str) -> nn.Cell:
    """Return the net in mixed precision; at "O0" the net itself.

    At O1 MindSpore writes rewritten code of the net into the current folder, so this changes to a temporary one.
    """
    if amp_level == "O0":
        return net
    before, paths = os.getcwd(), list(sys.path)
    os.chdir(_code_folder())
    try:
        return amp.auto_mixed_precision(net, amp_level)
    finally:
        os.chdir(before)
        sys.path[:] = paths


@functools.cache
def _code_folder() -> Path:
    """Return a temporary folder that exists until the process ends: MindSpore's compiler reads the code there."""
    until_exit = contextlib.ExitStack()
    atexit.register(until_exit.close)
    return until_exit.enter_context(discarded_at_exit(Path(tempfile.mkdtemp(prefix="depthnet-"))))


def clear_overflows() -> None:
    """Clear the overflow register of the chip: reading clears it (MindSpore 2.10, amp.py)."""
    amp.all_finite([ms.Tensor([0.0], ms.float32)])


@ms.jit
def unit_range(rgb: ms.Tensor) -> ms.Tensor:
    """Convert uint8 to float32 in [0, 1], on the device."""
    return rgb.astype(ms.float32) / 255
