"""Exports a net to MindIR, AIR or ONNX. A file gets its final name only after it was read back and compared."""

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn
from mindspore.train import mind_ir_pb2

from src.base.arrays import Array, Floats
from src.base.errors import CheckFailed, UserError
from src.base.files import StrPath, linked, temporary_folder, writable_folder
from src.net import DEPTH_SHAPE, RGB_SHAPE, FineNet

FOLDERS = {"MINDIR": "MindIR", "AIR": "AIR", "ONNX": "ONNX"}
TOLERANCE = 1e-4

# Arguments that MindIR 3 passes as trailing inputs, and MindIR 1 as attributes of the operator.
_VERSION_1_ATTRIBUTES = {"Concat": ("axis",), "BiasAdd": ("format",), "MatMul": ("transpose_a", "transpose_b")}

logger = logging.getLogger(__name__)


def export(net: nn.Cell, file_format: str, folder: StrPath, batch_size: int = 1, mindir_version: str = "1") -> Path:
    """Export a net, compare the file with the net, and save it.

    Args:
        net: a coarse net or FineNet.
        file_format: "MINDIR", "AIR" (only on Ascend) or "ONNX".
        folder: the parent of the folders MindIR, AIR and ONNX.
        batch_size: the fixed batch size of MindIR and AIR. ONNX accepts any.
        mindir_version: "1", which all MindSpore Lite runtimes read, or "native", as MindSpore wrote it.

    Returns:
        `folder`/<MindIR, AIR or ONNX>/Final<net>.<ending>.

    Raises:
        CheckFailed: the file's outputs differ from the net's. No file is left.
        UserError: the format cannot be written on this machine.
    """
    if file_format == "AIR" and ms.get_context("device_target") != "Ascend":
        raise UserError("AIR can be exported on Ascend only: use MINDIR, or run this where MindSpore has an Ascend")
    net.set_train(False)
    name = "FinalFineNet" if isinstance(net, FineNet) else "FinalCoarseNet"
    target = Path(folder) / FOLDERS[file_format] / f"{name}.{file_format.lower()}"
    writable_folder(target.parent)
    if file_format == "AIR":  # at other levels MindSpore runs kernel by kernel and has no graph to write
        ms.set_context(jit_config={"jit_level": "O2"})
    with temporary_folder(target.parent) as work:
        written = work / target.name
        # MindSpore rejects names with spaces and some other characters, and chmods an AIR file that it has not written.
        with linked(written.parent) as link, contextlib.suppress(FileNotFoundError):
            ms.export(net, *_tensors(net, batch_size), file_name=str(link / name), file_format=file_format)
        if not written.is_file():
            raise UserError(f"{target}: MindSpore has written nothing: use --file_format MINDIR")
        written.chmod(target.parent.stat().st_mode & 0o666)  # MindSpore writes files with mode 0400
        if file_format == "MINDIR" and mindir_version == "1":
            written.write_bytes(to_version_1(written.read_bytes()))
        if file_format == "ONNX":
            mend_onnx(written)
        difference = _VERIFIERS[file_format](net, written, batch_size)
        os.replace(written, target)
    verdict = "not verified: AIR cannot be read back" if difference is None else f"verified to {difference:.1e}"
    logger.info("%s: %.2f MB, %s", target, target.stat().st_size / 1e6, verdict)
    return target


def example_inputs(net: nn.Cell, batch_size: int, seed: int = 0) -> list[Floats]:
    """Return random inputs: RGB (N, 3, 228, 304) in [0, 1], and for FineNet also coarse log depth (N, 1, 55, 74)."""
    rng = np.random.default_rng(seed)
    inputs = [rng.random((batch_size, *RGB_SHAPE), np.float32)]
    if isinstance(net, FineNet):
        inputs.append(rng.normal(1, 0.5, (batch_size, *DEPTH_SHAPE)).astype(np.float32))
    return inputs


def _tensors(net: nn.Cell, batch_size: int, seed: int = 0) -> list[ms.Tensor]:
    return [ms.Tensor(array) for array in example_inputs(net, batch_size, seed)]


def to_version_1(content: bytes) -> bytes:
    """Convert MindIR format 3 to format 1: constant inputs of an operator become its attributes.

    Raises CheckFailed if two uses of an operator have different constants, which format 1 cannot express.
    """
    model = mind_ir_pb2.ModelProto()
    model.ParseFromString(content)
    constants = {node.output[0]: node for node in model.graph.node if node.op_type == "Constant"}
    for primitive in model.primitives:
        primitive.prim_type = mind_ir_pb2.PrimitiveProto.PRIMITIVE
        names = _VERSION_1_ATTRIBUTES.get(primitive.op_type, ())
        values = {
            tuple(_pop_inputs(node, len(names)))
            for node in model.graph.node
            if node.op_type == f"REF::{primitive.name}"
        }
        if len(values) > 1:
            raise CheckFailed(f"MindIR version 1: {primitive.op_type} is used with different arguments")
        for name, output in zip(names, values.pop() if values else (), strict=True):
            attribute = primitive.attribute.add()
            attribute.CopyFrom(constants[output].attribute[0])
            attribute.name = name
            if name == "format":  # an enumeration in format 3, a string in format 1
                attribute.CopyFrom(
                    mind_ir_pb2.AttributeProto(name=name, s=b"NCHW", type=mind_ir_pb2.AttributeProto.STRING)
                )
    used = {name for node in model.graph.node for name in node.input} | {out.name for out in model.graph.output}
    for node in [node for node in constants.values() if node.output[0] not in used]:
        model.graph.node.remove(node)
    model.mind_ir_version = 1
    return model.SerializeToString()


def _pop_inputs(node: Any, count: int) -> list[str]:
    """Remove the last `count` inputs of a node and return their names."""
    names = list(node.input)[len(node.input) - count :]
    del node.input[len(node.input) - count :]
    return names


def mend_onnx(path: Path) -> None:
    """Correct errors of MindSpore 2.10 in an ONNX file, name its output, and make its batch size dynamic. In place."""
    import onnx

    model = onnx.load(path)
    graph = model.graph
    for node in graph.node:
        for attribute in list(node.attribute):
            if attribute.name == "pads" and len(attribute.ints) == 4:  # MindSpore's order is top, bottom, left, right
                top, bottom, left, right = attribute.ints
                attribute.ints[:] = (top, left, bottom, right)
            if node.op_type == "ConvTranspose" and attribute.name == "output_shape":
                node.attribute.remove(attribute)  # has four dimensions, ONNX expects two; stride and kernel suffice
        if node.op_type == "Constant":  # the shape input of Reshape: make the batch size dynamic
            shape = onnx.numpy_helper.to_array(node.attribute[0].t).copy()
            shape[0] = -1
            node.attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(shape, node.attribute[0].t.name))
    for node in graph.node:
        node.output[:] = ["log_depth" if name == graph.output[0].name else name for name in node.output]
    graph.output[0].name = "log_depth"
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _difference(net: nn.Cell, batch_size: int, run: Callable[..., Array]) -> float:
    """Return the largest difference between the net and `run` on random inputs. Raises CheckFailed above TOLERANCE."""
    largest = 0.0
    for seed in (1, 2):
        inputs = example_inputs(net, batch_size, seed)
        expected = net(*map(ms.Tensor, inputs)).asnumpy()
        got = run(*inputs)
        if got.shape != expected.shape or not np.isfinite(got).all():
            raise CheckFailed(f"the exported file gives {got.shape}, expected finite values {expected.shape}")
        largest = max(largest, float(np.abs(got - expected).max()))
    if largest > TOLERANCE:
        raise CheckFailed(
            f"the exported file differs from the checkpoint's net by {largest:.2e}, "
            f"more than {TOLERANCE}: nothing is written"
        )
    return largest


def _verify_mindir(net: nn.Cell, path: Path, batch_size: int) -> float:
    cell = nn.GraphCell(ms.load(str(path)))
    return _difference(net, batch_size, lambda *inputs: cell(*map(ms.Tensor, inputs)).asnumpy())


def _verify_onnx(net: nn.Cell, path: Path, batch_size: int) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(*inputs: Array) -> Array:
        return session.run(None, dict(zip(names, inputs, strict=True)))[0]

    return max(_difference(net, size, run) for size in {1, batch_size, 3})


_VERIFIERS: dict[str, Callable[[nn.Cell, Path, int], float | None]] = {
    "MINDIR": _verify_mindir,
    "ONNX": _verify_onnx,
    "AIR": lambda *_: None,
}
