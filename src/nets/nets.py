"""Runs CoarseNet and FineNet together, with MindSpore or onnxruntime."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from src import metrics
from src.base import cli
from src.base.arrays import Floats
from src.base.errors import UserError
from src.base.files import StrPath

Net: TypeAlias = Callable[..., Floats]


class Nets:
    """Predicts log depth with both nets: `Nets(coarse, fine)(rgb)`.

    Args:
        coarse, fine: the two nets. Each is a MindSpore checkpoint, an ONNX file written by export.py (run by
            onnxruntime; MindSpore is not needed), or a function: RGB (N, 3, 228, 304) in [0, 1] -> log depth
            (N, 1, 55, 74) for `coarse`, and (RGB, coarse log depth) -> log depth for `fine`. Defaults: the
            checkpoints in Model/Ckpt, or those in weights/ of this repo if Model/Ckpt has none.
        flip_average: average the log depth of each picture with that of its mirror image.

    Raises UserError if a file cannot be used.
    """

    def __init__(
        self, coarse: Net | StrPath | None = None, fine: Net | StrPath | None = None, flip_average: bool = False
    ) -> None:
        if coarse is None or fine is None:
            defaults = cli.default_or_shipped_checkpoints()
            coarse, fine = coarse or defaults[0], fine or defaults[1]
        self.sources, self.flip_average = (coarse, fine), flip_average
        self.coarse, self.fine = _load(coarse, "coarse"), _load(fine, "fine")
        if isinstance(self.coarse, _Cell) and isinstance(self.fine, _Cell):
            from src.nets import checkpoint

            checkpoint.warn_of_another_coarse(self.coarse.cell, self.fine.cell)

    def __call__(self, rgb: Floats, names: Sequence[object] | None = None) -> dict[str, Floats]:
        """Predict the log depth of a batch.

        Args:
            rgb: float32 (N, 3, 228, 304) in [0, 1].
            names: the N names of the pictures for error messages. Default: their numbers.

        Returns:
            {"CoarseNet": log depth, "FineNet": log depth}: each float32 (N, 1, 55, 74), the natural log of metres.

        Raises errors.NotFinite naming the net and the pictures if a prediction is NaN or infinite.
        """
        names = range(len(rgb)) if names is None else names
        log_depth = self._run(rgb, names)
        if not self.flip_average:
            return log_depth
        mirrored = self._run(np.ascontiguousarray(rgb[..., ::-1]), names)
        return {net: (log_depth[net] + mirrored[net][..., ::-1]) / 2 for net in log_depth}

    def _run(self, rgb: Floats, names: Sequence[object]) -> dict[str, Floats]:
        # Check CoarseNet before FineNet runs: FineNet's ReLU may hide a NaN.
        coarse = metrics.finite(self.coarse(rgb), [f"{name} (CoarseNet)" for name in names])
        fine = metrics.finite(self.fine(rgb, coarse), [f"{name} (FineNet)" for name in names])
        return {"CoarseNet": coarse, "FineNet": fine}


def files_from_options(options: argparse.Namespace) -> tuple[Path | None, Path | None]:
    """Return the coarse and fine files given by the options of `cli.add_nets`; None means the default.

    Selects the MindSpore device first, unless the files are ONNX. Raises DeviceError if it cannot be used.
    """
    if options.coarse_onnx:
        return options.coarse_onnx, options.fine_onnx
    from src.nets import device

    device.select(options.device_target, options.device_id)
    return options.coarse_ckpt_model, options.fine_ckpt_model


def _load(net: Net | StrPath, kind: str) -> Net:
    """Return a "coarse" or "fine" net as a function of arrays."""
    if callable(net):
        return net
    path = Path(net)
    if path.suffix == ".onnx":
        return _load_onnx(path, kind)
    from src.nets import checkpoint

    return _Cell(checkpoint.load_coarse(path) if kind == "coarse" else checkpoint.load_fine(path))


class _Cell:
    """A MindSpore net as a function of arrays."""

    def __init__(self, cell: Any) -> None:
        self.cell = cell

    def __call__(self, *arrays: Floats) -> Floats:
        import mindspore as ms

        return self.cell(*map(ms.Tensor, arrays)).asnumpy()


def _load_onnx(path: Path, kind: str) -> Net:
    import onnxruntime

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise UserError(f"{path}: not a readable ONNX file") from error
    names = [argument.name for argument in session.get_inputs()]
    expected = ["rgb"] if kind == "coarse" else ["rgb", "coarse_log_depth"]
    if names != expected:
        raise UserError(
            f"{path}: takes {', '.join(names)}, but the {kind} net takes {', '.join(expected)}: "
            "expected what export.py writes"
        )
    return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))[0]
