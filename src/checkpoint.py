"""Checkpoints: written whole or not at all, checked when loaded, readable by `mindspore.load_checkpoint`.

A file holds parameters under their own names, and one entry more, `depthnet`: a JSON text with what the
numbers mean (net, step, options) and the SHA-256 of the parameters. Files from elsewhere, such as those
published for the model-zoo DepthNet, have no such entry; they load all the same.
"""

import hashlib
import json
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import mindspore as ms
import numpy as np

from src.errors import UserError
from src.net import COARSE_NETS, FineNet

INFO_KEY = "depthnet"

# What optimizers leave in a checkpoint beside the net's own parameters.
_OPTIMIZER_PREFIXES = ("moment1.", "moment2.", "moments.", "accum.")
_OPTIMIZER_NAMES = ("global_step", "learning_rate", "beta1_power", "beta2_power", "momentum", "scale_value", "counter",
                    "scale_sense", "current_iterator_step", "last_overflow_iterator_step", "epoch_num", "step_num")

logger = logging.getLogger(__name__)


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another net. The message names the file."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded file: float arrays by parameter name, and what was written beside them."""

    path: Path
    arrays: dict
    info: dict


def save(path, parameters, info):
    """Write `parameters` (name -> Parameter, Tensor or array) and the JSON-able `info` to `path`.

    The file appears under its name complete and on disk, or not at all: temporary file, fsync, rename.
    Raises OSError when it cannot be written, a full disk included.
    """
    path = Path(path)
    arrays = {name: np.asarray(value.asnumpy() if hasattr(value, "asnumpy") else value)
              for name, value in parameters.items()}
    info = json.dumps({**info, "sha256": _hash(arrays)}, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(".ckpt", f".{path.stem}-partial-", path.parent)
    os.close(descriptor)
    partial = Path(partial)
    try:
        _write(partial, arrays, info)
        os.replace(partial, path)
        _fsync(path.parent)
    finally:
        for leftover in (partial, partial.with_suffix(".tmp")):  # MindSpore's own temporary name
            leftover.unlink(missing_ok=True)


def _write(path, arrays, info):
    entries = [{"name": name, "data": ms.Tensor(array)} for name, array in arrays.items()]
    try:
        ms.save_checkpoint(entries, str(path), append_dict={INFO_KEY: info})
    except OSError:
        raise
    except Exception as error:  # MindSpore wraps the OSError of a failed write
        raise OSError(f"{path.parent}: cannot write a checkpoint: {error}") from error
    path.chmod(0o644)  # MindSpore's files are 0400
    _fsync(path)


def _fsync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hash(arrays):
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def digest(net):
    """SHA-256 of a net's parameters, as hexadecimal text."""
    return _hash({parameter.name: parameter.asnumpy() for parameter in net.get_parameters()})


def load(path):
    """Read and verify a checkpoint. Raises CheckpointError when it is missing or damaged in any way."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        entries = ms.load_checkpoint(str(path), format="safetensors" if path.suffix == ".safetensors" else "ckpt")
        info = json.loads(entries.pop(INFO_KEY, "{}"))
        arrays = {name: value.asnumpy() for name, value in entries.items() if not isinstance(value, str)}
        digest = info.get("sha256")
    except Exception as error:  # a damaged file makes the parser raise nearly anything
        raise CheckpointError(f"{path}: not a readable checkpoint (damaged, or of another format)") from error
    if digest is None:
        logger.info("%s: carries no checksum, taken as it is", path)
    elif digest != _hash(arrays):
        raise CheckpointError(f"{path}: damaged: its parameters do not match its checksum")
    return Checkpoint(path, arrays, info)


def assign(net, checkpoint):
    """Copy a checkpoint's parameters into `net`. Raises CheckpointError naming the parameters that differ."""
    own = {parameter.name: parameter for parameter in net.get_parameters()}
    given = {name: array for name, array in checkpoint.arrays.items() if not _is_optimizer_state(name)}
    differences = [f"missing {name}" for name in own if name not in given]
    differences += [f"unexpected {name}" for name in given if name not in own]
    differences += [f"{name} is {tuple(given[name].shape)}, expected {tuple(own[name].shape)}"
                    for name in own if name in given and given[name].shape != own[name].shape]
    if differences:
        raise CheckpointError(f"{checkpoint.path}: not a checkpoint of {type(net).__name__}: "
                              + ", ".join(differences))
    for name, parameter in own.items():
        parameter.set_data(ms.Tensor(given[name], parameter.dtype))


def _is_optimizer_state(name):
    return name.startswith(_OPTIMIZER_PREFIXES) or name in _OPTIMIZER_NAMES


def load_coarse(path):
    """The coarse net of a checkpoint, default or paper, as the checkpoint says. Raises CheckpointError."""
    checkpoint = load(path)
    kind = checkpoint.info.get("coarse_net") or ("paper" if "fc7.weight" in checkpoint.arrays else "default")
    if kind not in COARSE_NETS or checkpoint.info.get("stage", "coarse") != "coarse":
        raise CheckpointError(f"{path}: a checkpoint of FineNet, expected a coarse net")
    return _loaded(COARSE_NETS[kind](), checkpoint)


def load_fine(path):
    """The FineNet of a checkpoint. Raises CheckpointError."""
    return _loaded(FineNet(), load(path))


def _loaded(net, checkpoint):
    assign(net, checkpoint)
    net.set_train(False)
    return net
