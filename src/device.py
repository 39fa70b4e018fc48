"""The device, its precision, and the processes that train together: all that differs on Ascend."""

import functools
import logging
import os
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import communication, nn, ops

from src.errors import UserError

logger = logging.getLogger(__name__)


class DeviceError(UserError):
    """A device that MindSpore cannot use."""


@dataclass(frozen=True)
class Device:
    """What a process runs on, and which of the processes that train together it is."""

    target: str
    rank: int = 0
    ranks: int = 1

    @property
    def is_first(self):
        """Rank 0: the one that writes files and logs."""
        return self.rank == 0

    def sum(self, values):
        """The sum of a few float32 numbers over all ranks; each rank waits for the others."""
        values = np.asarray(values, np.float32)
        if self.ranks == 1:
            return values
        return _all_reduce()(ms.Tensor(values)).asnumpy()

    def broadcast(self, parameters):
        """Give every rank the values that rank 0 has in these Parameters."""
        if self.ranks == 1:
            return
        first = _Collective(ops.Broadcast(0))
        for parameter in parameters:
            value = ms.Tensor(parameter.asnumpy()).reshape(-1)
            parameter.set_data(first((value,))[0].reshape(parameter.shape))

    def broadcast_int(self, value):
        """Rank 0's `value` on every rank."""
        return int(self.sum([value if self.is_first else 0])[0])


class _Collective(nn.Cell):
    def __init__(self, operator):
        super().__init__()
        self.operator = operator

    def construct(self, value):
        return self.operator(value)


@functools.cache
def _all_reduce():
    """One cell a process: it runs after every step, and a new one would be compiled again."""
    return _Collective(ops.AllReduce())


def choose(target, available):
    """The target meant by `target`: "auto" is Ascend where it is available, else CPU. Raises DeviceError."""
    if target == "auto":
        return "Ascend" if available("Ascend") else "CPU"
    if not available(target):
        raise DeviceError(f"--device_target {target}: MindSpore {ms.__version__} cannot use it here; "
                          "expected CPU, or auto to take what there is")
    return target


def select(target="auto", device_id=0):
    """Make `target` MindSpore's device, join the other processes of a distributed run, and say which it is.

    In a distributed run the launcher's DEVICE_ID counts, not `device_id`. Raises DeviceError when it cannot be used.
    """
    chosen = choose(target, ms.hal.is_available)
    # msrun sets both, for one worker too, and its scheduler is this program as well; a rank-table start sets one.
    launched = "MS_ROLE" in os.environ or int(os.environ.get("RANK_SIZE", "1")) > 1
    if launched:
        device_id = int(os.environ.get("DEVICE_ID", device_id))
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        ms.set_device(chosen, device_id)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DeviceError(f"--device_target {chosen} --device_id {device_id}: {reason}") from error
    device = _join(chosen) if launched else Device(chosen)
    if not device.is_first:
        logging.getLogger().setLevel(logging.WARNING)
    logger.info("device: %s%s%s", chosen, "" if chosen == "CPU" else f" {device_id}",
                f", {device.ranks} ranks" if device.ranks > 1 else "")
    return device


def _join(target):
    communication.init()  # HCCL on Ascend, MindSpore's own collectives on CPU
    device = Device(target, communication.get_rank(), communication.get_group_size())
    ms.set_auto_parallel_context(parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True,
                                 device_num=device.ranks)
    return device


def amp_level(level, target):
    """The precision that "auto" means: fp16 compute (O2) on Ascend, fp32 (O0) elsewhere."""
    if level != "auto":
        return level
    return "O2" if target == "Ascend" else "O0"
