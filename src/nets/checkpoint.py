"""Saves checkpoints atomically and verifies them on load. `mindspore.load_checkpoint` can read them too.

A file holds the parameters by name, and an additional entry `depthnet`: a JSON text with the net, step and options, and
the SHA-256 of the parameters. Files from other sources, such as the model zoo's DepthNet, lack this entry and load as
well. A weight may be stored as float16 or as two factors (tools/compress_weights.py), which are multiplied on load.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mindspore as ms
import numpy as np
from google.protobuf.message import DecodeError
from mindspore import nn
from mindspore.train import checkpoint_pb2

from src.base.arrays import Array
from src.base.errors import UserError
from src.base.files import StrPath, replacing
from src.net import COARSE_NETS, FineNet

INFO_KEY = "depthnet"
LEFT, RIGHT = ".left", ".right"  # endings of the names of a weight's two factors
# Keys of `depthnet`: in FineNet's checkpoint the digest of the CoarseNet that it was trained on, in a compressed
# CoarseNet's checkpoint the digest of the uncompressed CoarseNet.
COARSE_SHA256, WHOLE_SHA256 = "coarse_sha256", "whole_sha256"

_DTYPES = {
    name: np.dtype(name.lower())
    for name in (
        "Float16",
        "Float32",
        "Float64",
        "Bool",
        "Int8",
        "Int16",
        "Int32",
        "Int64",
        "UInt8",
        "UInt16",
        "UInt32",
        "UInt64",
    )
}
_TYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

# Entries of optimizers, which are not parameters of the net.
_OPTIMIZER_PREFIXES = ("ema.", "moment1.", "moment2.", "moments.", "accum.")
_OPTIMIZER_NAMES = (
    "global_step",
    "learning_rate",
    "beta1_power",
    "beta2_power",
    "momentum",
    "scale_value",
    "counter",
    "scale_sense",
    "current_iterator_step",
    "last_overflow_iterator_step",
    "epoch_num",
    "step_num",
)

logger = logging.getLogger(__name__)

try:
    from mindspore.nn.utils import no_init_parameters
except ImportError:  # deprecated, and to be removed: a net then gets random numbers before its weights
    no_init_parameters = contextlib.nullcontext


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or of another net. The message names the file."""


class Checkpoint(NamedTuple):
    """A loaded checkpoint: arrays by parameter name, the `depthnet` entry, and whether the arrays were compressed."""

    path: Path
    arrays: dict[str, Array]
    info: dict[str, Any]
    compressed: bool = False


def save(path: StrPath, parameters: Mapping[str, Any], info: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically and durably: temporary file, fsync, rename.

    Args:
        path: the file.
        parameters: name to Parameter, Tensor or array.
        info: the `depthnet` entry, convertible to JSON.

    Raises OSError if it cannot be written, for example on a full disk.
    """
    path = Path(path)
    arrays = {
        name: np.asarray(value.asnumpy() if hasattr(value, "asnumpy") else value) for name, value in parameters.items()
    }
    text = json.dumps({**info, "sha256": _hash(arrays, info)}, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, "wb") as file:
        # The checksum comes first, so that a file truncated between two entries does not match it.
        file.write(_entry(INFO_KEY, "str", (0,), text.encode("utf-32-le")))
        for name, array in arrays.items():
            file.write(_entry(name, _TYPE_NAMES[array.dtype], array.shape, array.tobytes()))


def _entry(name: str, kind: str, shape: tuple[int, ...], content: bytes) -> bytes:
    """Return an entry of MindSpore's checkpoint format. A file is a sequence of entries."""
    message = checkpoint_pb2.Checkpoint()
    value = message.value.add(tag=name)
    value.tensor.dims.extend(shape)
    value.tensor.tensor_type = kind
    value.tensor.tensor_content = content
    return message.SerializeToString()


def _hash(arrays: Mapping[str, Array], info: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(info, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def digest(net: nn.Cell) -> str:
    """Return the SHA-256 of a net's parameters in hexadecimal."""
    return _hash({parameter.name: parameter.asnumpy() for parameter in net.get_parameters()}, {})


def load(path: StrPath) -> Checkpoint:
    """Read and verify a checkpoint. Raises CheckpointError if it is missing or damaged."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such checkpoint: train.py makes one, tools/get_weights.py fetches the "
            "published ones, weights/ holds those of this repo"
        )
    try:
        arrays = _parse(path.read_bytes())
        text = arrays.pop(INFO_KEY, None)
        info = {} if text is None else json.loads(str(text))
        expected = None if text is None else info.pop("sha256")
        if any(array.dtype.kind == "U" for array in arrays.values()):
            raise ValueError("text among the parameters")
    except (DecodeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint (damaged, or of another format)") from error
    if expected is None:
        logger.info("%s: carries no checksum, taken as it is", path)
    elif expected != _hash(arrays, info):
        raise CheckpointError(f"{path}: damaged: its content does not match its checksum")
    try:
        compressed = any(name.endswith(LEFT) or array.dtype == np.float16 for name, array in arrays.items())
        return Checkpoint(path, _multiplied_out(arrays), info, compressed)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: factors that do not belong together") from error


def _multiplied_out(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Replace each pair of factors by its product."""
    whole = {}
    for name, array in arrays.items():
        if name.endswith(LEFT):
            right = arrays[name.removesuffix(LEFT) + RIGHT]
            whole[name.removesuffix(LEFT)] = array.astype(np.float32) @ right.astype(np.float32)
        elif not name.endswith(RIGHT):
            whole[name] = array
    return whole


def _parse(content: bytes) -> dict[str, Array]:
    """Parse a checkpoint file into arrays by name. `mindspore.load_checkpoint` is not used because some damaged files
    make it corrupt the memory of the process."""
    message = checkpoint_pb2.Checkpoint()
    message.ParseFromString(content)
    if not message.value:
        raise ValueError("no parameters")
    if any(isinstance(entry.tag, bytes) for entry in message.value):  # the C implementation of protobuf does not raise
        raise ValueError("a name that is not text")
    chunks: dict[str, list[Any]] = {}
    for entry in message.value:  # a parameter over 512 MiB is split into several entries
        chunks.setdefault(entry.tag, []).append(entry.tensor)
    return {name: _array(tensors) for name, tensors in chunks.items()}


def _array(tensors: Sequence[Any]) -> Array:
    content, kind = b"".join(tensor.tensor_content for tensor in tensors), tensors[0].tensor_type
    if kind == "str":
        return np.array(content.decode("utf-32-le"))
    return np.frombuffer(content, _DTYPES[kind]).reshape(tuple(tensors[0].dims)).copy()


def assign(net: nn.Cell, checkpoint: Checkpoint, names: Collection[str] | None = None) -> None:
    """Copy a checkpoint's parameters into `net`: all that the net has, or those of these names. Raises CheckpointError
    naming the parameters that differ."""
    own = {parameter.name: parameter for parameter in net.get_parameters() if names is None or parameter.name in names}
    given = weights_only(checkpoint)
    differences = [f"missing {name}" for name in own if name not in given]
    differences += [f"unexpected {name}" for name in given if name not in own]
    differences += [
        f"{name} is {tuple(given[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    if differences:
        raise CheckpointError(f"{checkpoint.path}: not a checkpoint of {type(net).__name__}: " + ", ".join(differences))
    for name, parameter in own.items():
        parameter.set_data(ms.Tensor(given[name], parameter.dtype))


def weights_only(checkpoint: Checkpoint) -> dict[str, Array]:
    """Return a checkpoint's arrays without those of the optimizer."""
    return {
        name: array
        for name, array in checkpoint.arrays.items()
        if not name.startswith(_OPTIMIZER_PREFIXES) and name not in _OPTIMIZER_NAMES
    }


def load_coarse(path: StrPath) -> nn.Cell:
    """Load a CoarseNet or PaperCoarseNet, as the checkpoint says. Raises CheckpointError."""
    checkpoint = load(path)
    kind = checkpoint.info.get("coarse_net") or ("paper" if "fc7.weight" in checkpoint.arrays else "default")
    if kind not in COARSE_NETS or checkpoint.info.get("stage", "coarse") != "coarse":
        raise CheckpointError(f"{path}: a checkpoint of FineNet, expected a coarse net")
    return _loaded(COARSE_NETS[kind], checkpoint)


def load_fine(path: StrPath) -> FineNet:
    """Load a FineNet. Raises CheckpointError."""
    return _loaded(FineNet, load(path))


def _loaded(kind: type[nn.Cell], checkpoint: Checkpoint) -> Any:
    with no_init_parameters():  # saves two seconds for PaperCoarseNet
        net = kind()
    assign(net, checkpoint)
    net.set_train(False)
    net.__dict__[_ORIGIN] = checkpoint._replace(arrays={})
    return net


_ORIGIN = "loaded_from"


def warn_of_another_coarse(coarse: nn.Cell, fine: nn.Cell) -> None:
    """Log a warning if a FineNet was trained on another CoarseNet.

    Args:
        coarse, fine: as returned by `load_coarse` and `load_fine`. Nothing is logged for a compressed CoarseNet without
            the digest of the original.
    """
    of_coarse, of_fine = coarse.__dict__[_ORIGIN], fine.__dict__[_ORIGIN]
    options = of_fine.info.get("options")
    expected = options.get(COARSE_SHA256) if isinstance(options, dict) else None
    whole = of_coarse.info.get(WHOLE_SHA256)
    if expected is None or (of_coarse.compressed and whole is None) or expected in (whole, digest(coarse)):
        return
    logger.warning(
        "%s was trained on another CoarseNet than %s: together they predict worse than with its own",
        of_fine.path,
        of_coarse.path,
    )
