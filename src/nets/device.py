"""Selects the device and the precision, and connects the processes of a distributed run: all Ascend-specific code."""

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
    """MindSpore cannot use a device."""


@dataclass(frozen=True)
class Device:
    """The device of this process, and its rank in a distributed run."""

    target: str
    rank: int = 0
    ranks: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes files and logs."""
        return self.rank == 0

    @property
    def keeps_overflows(self) -> bool:
        """Whether an overflow stays in a register of the chip until it is asked for, whichever net caused it: 910A."""
        return (
            self.target == "Ascend"
            and ms._c_expression.MSContext.get_instance().get_ascend_soc_version() == "ascend910"
        )

    def sum(self, values: Sequence[float] | Array) -> Floats:
        """Return the sum of float32 numbers over all ranks. Blocks until all ranks call it."""
        values = np.asarray(values, np.float32)
        if self.ranks == 1:
            return values
        return _all_reduce()(ms.Tensor(values)).asnumpy()

    def broadcast(self, parameters: Iterable[ms.Parameter]) -> None:
        """Copy rank 0's values of these Parameters to every rank."""
        if self.ranks == 1:
            return
        parameters = list(parameters)
        for dtype in {parameter.dtype for parameter in parameters}:
            same_type = [parameter for parameter in parameters if parameter.dtype == dtype]
            values = self._broadcast(np.concatenate([parameter.asnumpy().ravel() for parameter in same_type]))
            ends = np.cumsum([parameter.size for parameter in same_type])
            for parameter, part in zip(same_type, np.split(values, ends[:-1]), strict=True):
                parameter.set_data(ms.Tensor(part.reshape(parameter.shape), dtype))

    @staticmethod
    def _broadcast(values: Array) -> Array:
        """Return rank 0's array on every rank. Pieces of equal size need only one compiled graph."""
        first = _Collective(ops.Broadcast(0))
        size = min(len(values), _BROADCAST_VALUES)
        pieces = [values[start : start + size] for start in range(0, len(values), size)]
        return np.concatenate(
            [first((ms.Tensor(np.resize(piece, size)),))[0].asnumpy()[: len(piece)] for piece in pieces]
        )

    def broadcast_int(self, value: int) -> int:
        """Return rank 0's `value` on every rank."""
        return int(self.sum([value if self.is_first else 0])[0])


class _Collective(nn.Cell):
    def __init__(self, operator: ops.Primitive) -> None:
        super().__init__()
        self.operator = operator

    def construct(self, value: ms.Tensor) -> ms.Tensor:
        return self.operator(value)


@functools.cache
def _all_reduce() -> _Collective:
    """Return the process's only AllReduce cell; a new cell would be compiled again."""
    return _Collective(ops.AllReduce())


def _cannot_use() -> str:
    """Return a message that MindSpore cannot use the Ascend, with its reason if known."""
    reason = str(ms._c_expression.MSContext.get_instance().load_plugin_error()).strip().splitlines()
    return f"MindSpore {ms.__version__} cannot use it" + (f" ({reason[0]})" if reason else "")


def choose(target: str, available: Callable[[str], bool], davinci: Sequence[str] = ()) -> str:
    """Choose the device target.

    Args:
        target: "Ascend", "GPU", "CPU", or "auto" for Ascend if available, else CPU.
        available: returns whether MindSpore can use a target.
        davinci: device files of Ascend chips (/dev/davinci*).

    Raises DeviceError if MindSpore cannot use the target, or if "auto" would ignore a chip and train on the CPU.
    """
    if target == "auto":
        if available("Ascend"):
            return "Ascend"
        if davinci:
            raise DeviceError(
                f"{davinci[0]} is there, but {_cannot_use()}: source "
                "/usr/local/Ascend/ascend-toolkit/set_env.sh, or ask for --device_target CPU"
            )
        return "CPU"
    if not available(target):
        cannot = _cannot_use() if target == "Ascend" else f"MindSpore {ms.__version__} cannot use it"
        raise DeviceError(f"--device_target {target}: {cannot}; expected CPU, or auto to take what there is")
    return target


def _is_available(target: str) -> bool:
    return getattr(ms.device_context, target.lower()).is_available()


def auto() -> str:
    """Return the target that "auto" means on this machine. Raises DeviceError."""
    target = choose("auto", _is_available, sorted(glob.glob("/dev/davinci[0-9]*")))
    if target == "CPU":
        logger.warning("no Ascend here: going to the CPU")
    return target


def select(target: str = "auto", device_id: int = 0, jit_level: str | None = None) -> Device:
    """Select MindSpore's device, and join the other processes of a distributed run.

    Args:
        target: as in `choose`.
        device_id: number of the device. In a distributed run the launcher's DEVICE_ID replaces it.
        jit_level: how MindSpore compiles a training's graphs: "auto", "O0", "O1" or "O2". None keeps its default.

    Raises DeviceError if the device cannot be used.
    """
    chosen = auto() if target == "auto" else choose(target, _is_available)
    launched = "MS_ROLE" in os.environ  # set by msrun, for its workers and its scheduler
    if launched:
        device_id = int(os.environ.get("DEVICE_ID", device_id))
    ms.set_context(mode=ms.GRAPH_MODE)
    if jit_level:
        _compile_for_training(jit_level, chosen)
    try:
        if chosen != "CPU" and not os.environ.get("MS_SIMULATION_LEVEL"):  # MindSpore's DryRun needs no device
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
    logger.info(
        "device: %s%s%s",
        chosen,
        "" if chosen == "CPU" else f" {device_id}",
        f", {device.ranks} ranks" if device.ranks > 1 else "",
    )
    return device


def _compile_for_training(level: str, target: str) -> None:
    """On Ascend "auto" is O2, one program of CANN's graph engine, which chooses the layout of each convolution: what
    MindCV and MindYOLO choose for such nets. At the other levels MindSpore launches kernel by kernel."""
    if level == "auto":
        level = "O2" if target == "Ascend" else ""
    if level:
        ms.set_context(jit_config={"jit_level": level})


def check_device_id(device_id: int, count: int) -> None:
    """Raise DeviceError unless device `device_id` exists. MindSpore would fail only when compiling the first net."""
    if device_id >= count:
        raise DeviceError(f"--device_id {device_id}: expected 0 to {count - 1}: there are {count} devices")


def _join(target: str) -> Device:
    communication.init()  # HCCL on Ascend, MindSpore's own collectives on CPU
    device = Device(target, communication.get_rank(), communication.get_group_size())
    ms.set_auto_parallel_context(
        parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True, device_num=device.ranks
    )
    device.sum([0])  # connect now: later a rank may be busy for longer than HCCL's timeout
    return device


def amp_level(level: str, target: str) -> str:
    """Return the precision level: `level`, or for "auto" O2 (fp16 compute) on Ascend and O0 (fp32) elsewhere."""
    if level != "auto":
        return level
    return "O2" if target == "Ascend" else "O0"
