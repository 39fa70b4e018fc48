"""The device, its precision, and the processes that train together: all that differs on Ascend."""

import logging
import os
from dataclasses import dataclass

import mindspore as ms

from src.errors import UserError

TARGETS = ("auto", "Ascend", "GPU", "CPU")
AMP_LEVELS = ("auto", "O0", "O1", "O2", "O3")

logger = logging.getLogger(__name__)


class DeviceError(UserError):
    """A device that MindSpore cannot use."""


@dataclass(frozen=True)
class Device:
    """What a process runs on, and which of the processes it is."""

    target: str
    rank: int = 0
    ranks: int = 1


def choose(target, available):
    """The target meant by `target`: "auto" is Ascend where it is available, else CPU. Raises DeviceError."""
    if target == "auto":
        return "Ascend" if available("Ascend") else "CPU"
    if not available(target):
        raise DeviceError(f"--device_target {target}: MindSpore {ms.__version__} cannot use it here; "
                          "expected CPU, or auto to take what there is")
    return target


def select(target="auto", device_id=0):
    """Make `target` MindSpore's device and say which it is. Raises DeviceError when it cannot be used."""
    chosen = choose(target, ms.hal.is_available)
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        ms.set_device(chosen, device_id)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DeviceError(f"--device_target {chosen} --device_id {device_id}: {reason}") from error
    logger.info("device: %s%s", chosen, "" if chosen == "CPU" else f" {device_id}")
    return Device(chosen)


def amp_level(level, target):
    """The precision that "auto" means: fp16 compute (O2) on Ascend, fp32 (O0) elsewhere."""
    if level != "auto":
        return level
    return "O2" if target == "Ascend" else "O0"


def default_workers():
    """Decoding threads: one a processor that this process may use, at most 8."""
    return min(8, len(os.sched_getaffinity(0)))
