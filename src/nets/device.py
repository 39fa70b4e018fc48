"""The device, its precision, and the processes that train together: all that differs on Ascend."""

import functools
import glob
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import communication, nn, ops

from src.base.arrays import Array, Floats
from src.base.errors import UserError

_BROADCAST_VALUES = 1 << 24

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
    def is_first(self) -> bool:
        """Rank 0: the one that writes files and logs."""
        return self.rank == 0

    @property
    def keeps_overflows(self) -> bool:
        """Whether an overflow stays in a register of the chip until it is asked for, whichever net caused it: 910A."""
        return (self.target == "Ascend"
                and ms._c_expression.MSContext.get_instance().get_ascend_soc_version() == "ascend910")

    def sum(self, values: Sequence[float] | Array) -> Floats:
        """The sum of a few float32 numbers over all ranks; each rank waits for the others."""
        values = np.asarray(values, np.float32)
        if self.ranks == 1:
            return values
        return _all_reduce()(ms.Tensor(values)).asnumpy()

    def broadcast(self, parameters: Iterable[ms.Parameter]) -> None:
        """Give every rank the values that rank 0 has in these Parameters."""
        if self.ranks == 1:
            return
        parameters = list(parameters)
        for dtype in {parameter.dtype for parameter in parameters}:
            alike = [parameter for parameter in parameters if parameter.dtype == dtype]
            values = self._broadcast(np.concatenate([parameter.asnumpy().ravel() for parameter in alike]))
            ends = np.cumsum([parameter.size for parameter in alike])
            for parameter, part in zip(alike, np.split(values, ends[:-1]), strict=True):
                parameter.set_data(ms.Tensor(part.reshape(parameter.shape), dtype))

    @staticmethod
    def _broadcast(values: Array) -> Array:
        """Rank 0's array on every rank, piece by piece of one size: one graph is compiled for all."""
        first = _Collective(ops.Broadcast(0))
        size = min(len(values), _BROADCAST_VALUES)
        pieces = [values[start:start + size] for start in range(0, len(values), size)]
        return np.concatenate([first((ms.Tensor(np.resize(piece, size)),))[0].asnumpy()[:len(piece)]
                               for piece in pieces])

    def broadcast_int(self, value: int) -> int:
        """Rank 0's `value` on every rank."""
        return int(self.sum([value if self.is_first else 0])[0])


class _Collective(nn.Cell):
    def __init__(self, operator: ops.Primitive) -> None:
        super().__init__()
        self.operator = operator

    def construct(self, value: ms.Tensor) -> ms.Tensor:
        return self.operator(value)


@functools.cache
def _all_reduce() -> _Collective:
    """One cell a process: it runs after every step, and a new one would be compiled again."""
    return _Collective(ops.AllReduce())


def _cannot_use() -> str:
    """That MindSpore cannot use the Ascend, and why, where it says so."""
    reason = str(ms._c_expression.MSContext.get_instance().load_plugin_error()).strip().splitlines()
    return f"MindSpore {ms.__version__} cannot use it" + (f" ({reason[0]})" if reason else "")


def choose(target: str, available: Callable[[str], bool], davinci: Sequence[str] = ()) -> str:
    """The target meant by `target`: "auto" is Ascend where it is available, else CPU.

    Raises DeviceError when MindSpore cannot use it, or when "auto" would pass over a chip (`davinci`: /dev/davinci*):
    it would train on the CPU for days.
    """
    if target == "auto":
        if available("Ascend"):
            return "Ascend"
        if davinci:
            raise DeviceError(f"{davinci[0]} is there, but {_cannot_use()}: source "
                              "/usr/local/Ascend/ascend-toolkit/set_env.sh, or ask for --device_target CPU")
        return "CPU"
    if not available(target):
        cannot = _cannot_use() if target == "Ascend" else f"MindSpore {ms.__version__} cannot use it"
        raise DeviceError(f"--device_target {target}: {cannot}; "
                          "expected CPU, or auto to take what there is")
    return target


def _is_available(target: str) -> bool:
    return getattr(ms.device_context, target.lower()).is_available()


def auto() -> str:
    """The target that "auto" means here. Raises DeviceError."""
    target = choose("auto", _is_available, sorted(glob.glob("/dev/davinci[0-9]*")))
    if target == "CPU":
        logger.warning("no Ascend here: going to the CPU")
    return target


def select(target: str = "auto", device_id: int = 0, jit_level: str | None = None) -> Device:
    """Make `target` MindSpore's device, join the other processes of a distributed run, and say which it is.

    Args:
        target: "auto", "Ascend", "GPU" or "CPU".
        device_id: which of them; in a distributed run the launcher's DEVICE_ID counts.
        jit_level: how a training's graphs are compiled: "auto", "O0", "O1" or "O2". None: as MindSpore does by itself.

    Raises DeviceError when it cannot be used.
    """
    chosen = auto() if target == "auto" else choose(target, _is_available)
    launched = "MS_ROLE" in os.environ  # by msrun, for one worker too; its scheduler is this program as well
    if launched:
        device_id = int(os.environ.get("DEVICE_ID", device_id))
    ms.set_context(mode=ms.GRAPH_MODE)
    if jit_level:
        _compile_for_training(jit_level, chosen)
    try:
        if chosen != "CPU" and not os.environ.get("MS_SIMULATION_LEVEL"):  # MindSpore's DryRun does without a device
            check_device_id(device_id, getattr(ms.device_context, chosen.lower()).device_count())
        ms.set_device(chosen, device_id)
    except DeviceError:
        raise
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DeviceError(f"--device_target {chosen} --device_id {device_id}: {reason}") from error
    device = _join(chosen) if launched else Device(chosen)
    if not device.is_first:
        logging.getLogger().setLevel(logging.WARNING)
    logger.info("device: %s%s%s", chosen, "" if chosen == "CPU" else f" {device_id}",
                f", {device.ranks} ranks" if device.ranks > 1 else "")
    return device


def _compile_for_training(level: str, target: str) -> None:
    """On Ascend "auto" is O2, one program of CANN's graph engine, which chooses the layout of each convolution: what
    MindCV and MindYOLO choose for such nets. At the other levels MindSpore launches kernel by kernel."""
    if level == "auto":
        level = "O2" if target == "Ascend" else ""
    if level:
        ms.set_context(jit_config={"jit_level": level})


def check_device_id(device_id: int, count: int) -> None:
    """Raise DeviceError unless there is such a device: MindSpore says it only when the first net is compiled."""
    if device_id >= count:
        raise DeviceError(f"--device_id {device_id}: expected 0 to {count - 1}: there are {count} devices")


def _join(target: str) -> Device:
    communication.init()  # HCCL on Ascend, MindSpore's own collectives on CPU
    device = Device(target, communication.get_rank(), communication.get_group_size())
    ms.set_auto_parallel_context(parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True,
                                 device_num=device.ranks)
    device.sum([0])  # the links are made while all are here: later one rank may be busy for longer than HCCL waits
    return device


def amp_level(level: str, target: str) -> str:
    """The precision that "auto" means: fp16 compute (O2) on Ascend, fp32 (O0) elsewhere."""
    if level != "auto":
        return level
    return "O2" if target == "Ascend" else "O0"
