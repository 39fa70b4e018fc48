"""The operator calls of this repo's training steps: run each alone, for tools/ascend_selfcheck.py, or list them.

The list, tools/selfcheck/calls.json, is of MindSpore 2.10's graphs on a 910B, at batch 2. To write it anew, in the
environment of tests/ascend/emulator.py: python tools/selfcheck_calls.py list --output tools/selfcheck/calls.json
"""

import argparse
import ast
import inspect
import itertools
import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import src  # noqa: F401 (sets the environment that MindSpore reads)

import mindspore as ms  # isort: skip
import numpy as np
from mindspore import nn, ops
from mindspore.ops.auto_generate import gen_ops_prim
from mindspore.ops.operations import nn_ops

from src.base.arrays import Array
from src.nets import device
from src.training.options import Recipe
from src.training.trainer import Trainer
from tools.selfcheck_nets import NETS, batch

# An operator, its arguments, and, unless it is a function, its attributes. An argument is a tensor "float32[2,3]", a
# Parameter "&float32[2,3]", a constant tensor {"float32": value}, tensors {"tuple": [...]}, a type {"type": "float32"},
# or a value.
Call = list[Any]
CALLS = Path(__file__).with_name("selfcheck") / "calls.json"
# What moves nothing on the device.
STRUCTURE = {"Load", "UpdateState", "Depend", "MakeTuple", "TupleGetItem", "Return", "Partial"}
CALL = re.compile(
    r"  %\d+\(.*?\) = (?P<function>PrimFunc_)?(?P<operator>\w+)\((?P<arguments>.*?)\)(?: \{instance.*?\})?"
    r"(?: primitive_attrs: \{(?P<attributes>.*?)\})? cnode_attrs"
)
VARIABLE = re.compile(r"%[\w.]+|Tensor\(shape=\[[^\]]+\], dtype=\w+, value=.*?\]\)")
ONE_ELEMENT = re.compile(r"(?<!\w)\(([^(),]+(?:\([^()]*\))?)\)")  # (x) is a tuple: (x,)


# Operators whose inputs are to be positive: divisors, logarithms, roots, Adam's powers and second moments.
POSITIVE = {"Adam", "Div", "RealDiv", "Log1p", "Reciprocal", "Sqrt"}
VOTES = [0, 0, 0, 0]  # as many as a training sums over the ranks
SECONDS = 120  # of a call
DRAWN, KEPT = 1_000_003, 100_000  # random numbers of an input, repeated if it is larger; values kept of an output


def calls_of(graph: str) -> Iterator[Call]:
    """Yield each operator call of a graph that MindSpore has saved as text."""
    lines = graph.splitlines()
    for line, types in itertools.pairwise(lines):
        match = CALL.match(line)
        if match is None or match["operator"] in STRUCTURE:
            continue
        inputs, outputs = types.split(") -> (")
        values = _parse("(" + VARIABLE.sub("variable", match["arguments"]) + ",)")
        arguments = [
            _tensors(text) if value == "variable" else value
            for value, text in zip(values, re.findall(r"<(.*?)>(?:, |\))", inputs + ")"), strict=True)
            if "Monad" not in text  # the order of effects
        ]
        if match["operator"] == "Cast":  # MindSpore's number of a type
            arguments[1] = {"type": re.findall(r"Tensor\[(\w+)\]", outputs)[0].lower()}
        attributes = [] if match["function"] else [_parse(f"{{{match['attributes'] or ''}}}")]
        yield [match["operator"], arguments, *attributes]


def _parse(text: str) -> Any:
    return _value(ast.parse(ONE_ELEMENT.sub(r"(\1,)", text), mode="eval").body)


def _value(node: Any) -> Any:
    """Return what MindSpore writes as I64(1), F32(0.5), Bool(1), (..), [..] or Tensor(.., dtype=.., value=..)."""
    match node:
        case ast.Call(func=ast.Name(id="Tensor"), keywords=keywords):
            fields = {keyword.arg: _value(keyword.value) for keyword in keywords}
            return {fields["dtype"].lower(): fields["value"]}
        case ast.Call(func=ast.Name(id=kind), args=[value]):
            return bool(_value(value)) if kind == "Bool" else _value(value)
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {_value(key): _value(value) for key, value in zip(keys, values, strict=True)}
        case ast.Name(id=name):
            return name
        case ast.Subscript(value=ast.Name(id=name)):
            return name
    return ast.literal_eval(node)


def _tensors(text: str) -> Any:
    """ "Tensor[Float32], (2, 3)" -> "float32[2,3]"."""
    types = [kind for kind, count in re.findall(r"Tensor\[(\w+)\](?:\*(\d+))?", text) for _ in range(int(count or 1))]
    shapes = re.findall(r"\(([\d, ]*)\)", text)
    named = [f"{kind.lower()}[{shape.replace(' ', '')}]" for kind, shape in zip(types, shapes, strict=True)]
    if text.startswith("Tuple"):
        return {"tuple": named}
    return ("&" if text.startswith("Ref") else "") + named[0]


def list_calls(target: str, nets: Sequence[str]) -> list[Call]:
    """Return the distinct operator calls of these nets' training steps in both precisions; FineNet's also with every
    option of the recipe, which work on each weight by itself."""
    every_option = Recipe("cosine", warmup_steps=2, dense_lr_scale=0.1, weight_decay=0.01, clip_norm=1.0, ema=0.9)
    chosen, calls = device.select(target, 0, "O0"), set()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MS_DEV_DUMP_IR_PASSES"] = "validate"  # of the graphs that MindSpore would save, the last
        ms.set_context(save_graphs=1, save_graphs_path=folder)
        for net in nets:
            for level in ("O0", "O2"):
                for recipe in (Recipe(), *([every_option] if net == "fine" else [])):
                    trainer = Trainer(
                        NETS[net](), "composite", 1e-4, amp_level=level, device=chosen, recipe=recipe, last_step=10
                    )
                    trainer.launch(*batch(net), votes=VOTES)()
        for path in Path(folder).rglob("*_validate_*.ir"):
            calls |= {json.dumps(call) for call in calls_of(path.read_text())}
    return [json.loads(call) for call in sorted(calls)]


class _Alone(nn.Cell):
    """One operator. Its first arguments are the cell's own Parameters, the others the cell's inputs."""

    def __init__(self, operator: ops.Primitive, parameters: list[ms.Parameter]) -> None:
        super().__init__()
        self.operator, self.own = operator, ms.ParameterTuple(parameters)

    def construct(self, *inputs: Any) -> Any:
        return self.operator(*self.own, *inputs)


def run_call(call: Call, in_float32: bool) -> list[Array]:
    """Return the outputs of an operator call on fixed inputs, or the Parameters that it has changed.

    Args:
        in_float32: compute in float32 what the call computes in float16, on the same inputs.
    """
    name, arguments, *attributes = json.loads(json.dumps(call).replace("float16", "float32")) if in_float32 else call
    if name == "AllFinite" and ms.get_context("device_target") == "CPU":  # which has no such operator
        return [np.array([True])]
    rng = np.random.default_rng(0)
    values = [_argument(rng, argument, name in POSITIVE) for argument in arguments]
    if name == "MaxPoolGrad":
        values[1] = ms.Tensor(_max_pool(values[0].asnumpy()))  # (input, output, gradient): they have to agree
    parameters = list(itertools.takewhile(lambda value: isinstance(value, ms.Parameter), values))
    operator, inputs = _operator(name, values[len(parameters) :], *attributes)
    outputs = _Alone(operator, parameters)(*inputs)
    changed = parameters or (outputs if isinstance(outputs, tuple) else [outputs])
    return [_sample(tensor.asnumpy()) for tensor in changed]


def _operator(
    name: str, values: list[Any], attributes: dict[str, Any] | None = None
) -> tuple[ops.Primitive, list[Any]]:
    """Return an operator, and the values that it is called with; the others are attributes of it."""
    if attributes is not None:
        operator = ops.Primitive(name)
        for key, value in attributes.items():
            operator.add_prim_attr(key, tuple(value) if isinstance(value, list) else value)
        return operator, values
    kind = next(getattr(module, name) for module in (gen_ops_prim, ops, nn_ops) if hasattr(module, name))
    own = list(inspect.signature(kind.__init__).parameters)[1:]
    operator = kind()
    for key, value in zip(own, values[len(values) - len(own) :], strict=True):
        operator._set_prim_arg(key, value)
    return operator, values[: len(values) - len(own)]


def _argument(rng: np.random.Generator, described: Any, positive: bool) -> Any:
    match described:
        case {"tuple": tensors}:
            return ms.mutable(tuple(_argument(rng, tensor, positive) for tensor in tensors))
        case {"type": str(name)}:
            return getattr(ms, name)
        case dict():
            [(dtype, value)] = described.items()
            return ms.Tensor(value, getattr(ms, dtype), const_arg=True)
        case list():
            return tuple(described)
        case str():
            dtype, shape = re.fullmatch(r"&?(\w+)\[([\d,]*)\]", described).groups()  # type: ignore[union-attr]
            array = _random(rng, tuple(map(int, filter(None, shape.split(",")))), dtype, positive)
            return ms.Parameter(ms.Tensor(array)) if described.startswith("&") else ms.Tensor(array)
    return described


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, positive: bool) -> Array:
    """Return random numbers that float16 holds exactly. Neighbours differ, so that every maximum is unique."""
    if not dtype.startswith("float"):
        return np.resize(rng.integers(0, 2 if dtype == "bool" else 100, DRAWN), shape).astype(dtype)
    array = np.resize((rng.integers(-16, 16, DRAWN) / 8).astype(np.float32), shape)
    if len(shape) > 1:
        rows, columns = np.ogrid[: shape[-2], : shape[-1]]
        array += ((rows % 2 * 2 + columns % 2) / 64).astype(np.float32)
    return (0.5 + array / 8 if positive else array).astype(dtype)


def _max_pool(array: Array) -> Array:
    """Return the largest of each 2 x 2 values; an odd last row or column is left out."""
    rows, columns = (size // 2 * 2 for size in array.shape[-2:])
    parts = [array[..., row:rows:2, column:columns:2] for row in (0, 1) for column in (0, 1)]
    return np.max(parts, axis=0)


def _sample(array: Array) -> Array:
    """Return evenly spaced values of a large array."""
    return array.ravel()[:: max(1, array.size // KEPT) | 1]


def run_calls(target: str, device_id: int, in_float32: bool, folder: Path) -> None:
    """Run each call that has no file yet in `folder`, and write its outputs there, or what it raises. A call that takes
    longer than two minutes ends this process."""
    device.select(target, device_id, "O0")
    # In PyNative mode nothing is compiled, but not every operator has a kernel.
    modes = [ms.PYNATIVE_MODE, ms.GRAPH_MODE] if in_float32 else [ms.GRAPH_MODE]
    for number, call in enumerate(json.loads(CALLS.read_text())):
        path = folder / f"{number}.npz"
        if path.exists():
            continue
        signal.alarm(SECONDS)
        for mode in modes:
            ms.set_context(mode=mode)
            try:
                outputs = {f"output {place}": array for place, array in enumerate(run_call(call, in_float32))}
                break
            except Exception as error:  # one operator must not hide the others
                outputs = {"error": np.array(" ".join(f"{type(error).__name__}: {error}".split())[:300])}
        signal.alarm(0)
        np.savez(folder / "next.npz", **outputs)
        os.replace(folder / "next.npz", path)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="write the list of calls")
    listing.add_argument("nets", nargs="*", default=list(NETS), help="of coarse, paper and fine")
    listing.add_argument("--device_target", default="Ascend")
    listing.add_argument("--output", type=Path, required=True)
    running = commands.add_parser("run", help="run each call")
    running.add_argument("target", choices=("Ascend", "CPU"))
    running.add_argument("device_id", type=int)
    running.add_argument("--in_float32", action="store_true", help="also what the calls compute in float16")
    running.add_argument("folder", type=Path)
    return parser.parse_args()


def main() -> None:
    options = parse_args()
    if options.command == "run":
        run_calls(options.target, options.device_id, options.in_float32, options.folder)
        return
    calls = list_calls(options.device_target, options.nets)
    options.output.write_text("[\n" + ",\n".join(map(json.dumps, calls)) + "\n]\n")
    os._exit(0)  # what MindSpore does at the end expects a device


if __name__ == "__main__":
    main()
