"""Checkpoints: written whole or not at all, checked when loaded, readable by `mindspore.load_checkpoint`.

A file holds parameters under their own names, and one entry more, `depthnet`: a JSON text with what the
numbers mean (net, step, options) and the SHA-256 of the parameters. Files from elsewhere, such as those
published for the model-zoo DepthNet, have no such entry; they load all the same. A weight may be float16, or two
factors (tools/compress_weights.py) that are multiplied out when it is loaded.
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
LEFT, RIGHT = ".left", ".right"  # the names of a weight's two factors
# In what is written beside FineNet's weights: the digest of the CoarseNet that it was trained on. Beside those of a
# compressed CoarseNet: the digest of the whole one.
COARSE_SHA256, WHOLE_SHA256 = "coarse_sha256", "whole_sha256"

_DTYPES = {name: np.dtype(name.lower()) for name in (
    "Float16", "Float32", "Float64", "Bool", "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64")}
_TYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

# What optimizers leave in a checkpoint beside the net's own parameters.
_OPTIMIZER_PREFIXES = ("ema.", "moment1.", "moment2.", "moments.", "accum.")
_OPTIMIZER_NAMES = ("global_step", "learning_rate", "beta1_power", "beta2_power", "momentum", "scale_value", "counter",
                    "scale_sense", "current_iterator_step", "last_overflow_iterator_step", "epoch_num", "step_num")

logger = logging.getLogger(__name__)

try:
    from mindspore.nn.utils import no_init_parameters
except ImportError:  # deprecated, and to be removed: a net then gets random numbers before its weights
    no_init_parameters = contextlib.nullcontext


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another net. The message names the file."""


class Checkpoint(NamedTuple):
    """A loaded file: float arrays by parameter name, what was written beside them, and whether the arrays were
    compressed (tools/compress_weights.py)."""

    path: Path
    arrays: dict[str, Array]
    info: dict[str, Any]
    compressed: bool = False


def save(path: StrPath, parameters: Mapping[str, Any], info: Mapping[str, Any]) -> None:
    """Write `parameters` (name -> Parameter, Tensor or array) and the JSON-able `info` to `path`.

    The file appears under its name complete and on disk, or not at all: temporary file, fsync, rename.
    Raises OSError when it cannot be written, a full disk included.
    """
    path = Path(path)
    arrays = {name: np.asarray(value.asnumpy() if hasattr(value, "asnumpy") else value)
              for name, value in parameters.items()}
    text = json.dumps({**info, "sha256": _hash(arrays, info)}, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, "wb") as file:
        # The text comes first: a file that was cut off between two entries does not match its checksum.
        file.write(_entry(INFO_KEY, "str", (0,), text.encode("utf-32-le")))
        for name, array in arrays.items():
            file.write(_entry(name, _TYPE_NAMES[array.dtype], array.shape, array.tobytes()))


def _entry(name: str, kind: str, shape: tuple[int, ...], content: bytes) -> bytes:
    """One value of MindSpore's checkpoint format: a file is these, one after the other."""
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
    """SHA-256 of a net's parameters, as hexadecimal text."""
    return _hash({parameter.name: parameter.asnumpy() for parameter in net.get_parameters()}, {})


def load(path: StrPath) -> Checkpoint:
    """Read and verify a checkpoint. Raises CheckpointError when it is missing or damaged in any way."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint: train.py makes one, tools/get_weights.py fetches the "
                              "published ones, weights/ holds those of this repo")
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
    """The arrays with the product in place of each pair of factors."""
    whole = {}
    for name, array in arrays.items():
        if name.endswith(LEFT):
            right = arrays[name.removesuffix(LEFT) + RIGHT]
            whole[name.removesuffix(LEFT)] = array.astype(np.float32) @ right.astype(np.float32)
        elif not name.endswith(RIGHT):
            whole[name] = array
    return whole


def _parse(content: bytes) -> dict[str, Array]:
    """The arrays of a checkpoint file by name. `mindspore.load_checkpoint` would do, but on some damaged files it
    corrupts the memory of the process."""
    message = checkpoint_pb2.Checkpoint()
    message.ParseFromString(content)
    if not message.value:
        raise ValueError("no parameters")
    if any(isinstance(entry.tag, bytes) for entry in message.value):  # protobuf's implementation in C leaves it at that
        raise ValueError("a name that is not text")
    chunks: dict[str, list[Any]] = {}
    for entry in message.value:  # a parameter over 512 MiB is in several
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
    differences += [f"{name} is {tuple(given[name].shape)}, expected {tuple(own[name].shape)}"
                    for name in own if name in given and given[name].shape != own[name].shape]
    if differences:
        raise CheckpointError(f"{checkpoint.path}: not a checkpoint of {type(net).__name__}: "
                              + ", ".join(differences))
    for name, parameter in own.items():
        parameter.set_data(ms.Tensor(given[name], parameter.dtype))


def weights_only(checkpoint: Checkpoint) -> dict[str, Array]:
    """A checkpoint's arrays less what belongs to the optimizer."""
    return {name: array for name, array in checkpoint.arrays.items()
            if not name.startswith(_OPTIMIZER_PREFIXES) and name not in _OPTIMIZER_NAMES}


def load_coarse(path: StrPath) -> nn.Cell:
    """The coarse net of a checkpoint, default or paper, as the checkpoint says. Raises CheckpointError."""
    checkpoint = load(path)
    kind = checkpoint.info.get("coarse_net") or ("paper" if "fc7.weight" in checkpoint.arrays else "default")
    if kind not in COARSE_NETS or checkpoint.info.get("stage", "coarse") != "coarse":
        raise CheckpointError(f"{path}: a checkpoint of FineNet, expected a coarse net")
    return _loaded(COARSE_NETS[kind], checkpoint)


def load_fine(path: StrPath) -> FineNet:
    """The FineNet of a checkpoint. Raises CheckpointError."""
    return _loaded(FineNet, load(path))


def _loaded(kind: type[nn.Cell], checkpoint: Checkpoint) -> Any:
    with no_init_parameters():  # random numbers for what the checkpoint replaces take PaperCoarseNet two seconds
        net = kind()
    assign(net, checkpoint)
    net.set_train(False)
    net.__dict__[_ORIGIN] = checkpoint._replace(arrays={})
    return net


_ORIGIN = "loaded_from"


def warn_of_another_coarse(coarse: nn.Cell, fine: nn.Cell) -> None:
    """Log a warning when a FineNet says that it was trained on another CoarseNet than this. Both as `load_coarse` and
    `load_fine` give them. A CoarseNet that was compressed before its digest was kept may be any."""
    of_coarse, of_fine = coarse.__dict__[_ORIGIN], fine.__dict__[_ORIGIN]
    options = of_fine.info.get("options")
    expected = options.get(COARSE_SHA256) if isinstance(options, dict) else None
    whole = of_coarse.info.get(WHOLE_SHA256)
    if expected is None or (of_coarse.compressed and whole is None) or expected in (whole, digest(coarse)):
        return
    logger.warning("%s was trained on another CoarseNet than %s: together they predict worse than with its own",
                   of_fine.path, of_coarse.path)
