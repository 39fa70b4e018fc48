"""Compute the arrays that tools/ascend_selfcheck.py compares, with the same code on each device."""

import argparse
import hashlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import src  # noqa: F401 (sets the environment that MindSpore reads)

import mindspore as ms  # isort: skip
import numpy as np
from mindspore import nn

from src.base.arrays import Array
from src.net import RGB_SHAPE, CoarseNet, FineNet, PaperCoarseNet
from src.nets import device
from src.training.trainer import Trainer

STEPS = 5
SCALE = 2.0**12  # loss scale, so that fp16 can hold the gradients
NETS: dict[str, Any] = {"coarse": CoarseNet, "paper": PaperCoarseNet, "fine": FineNet}
# Kind, arguments and input shape of each layer of src/net.py, for a batch of 2.
LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "conv 7x7 of 3": (lambda: nn.Conv2d(3, 64, 7, has_bias=True), (2, 3, 228, 304)),
    "conv 5x5 of 64, padded by hand": (
        lambda: nn.Conv2d(64, 128, 5, pad_mode="pad", padding=(1, 1, 2, 2), has_bias=True),
        (2, 64, 114, 152),
    ),
    "conv 3x3 of 512": (lambda: nn.Conv2d(512, 512, 3, has_bias=True), (2, 512, 14, 19)),
    "conv 3x3 of 192, padded above": (
        lambda: nn.Conv2d(192, 64, 3, pad_mode="pad", padding=(1, 0, 0, 0), has_bias=True),
        (2, 192, 56, 76),
    ),
    "conv 3x3 to 1": (lambda: nn.Conv2d(16, 1, 3, has_bias=True), (2, 16, 55, 74)),
    "conv 11x11, stride 4": (
        lambda: nn.Conv2d(3, 96, 11, 4, pad_mode="pad", padding=0, has_bias=True),
        (2, 3, 228, 304),
    ),
    "conv 9x9, stride 2, no bias": (lambda: nn.Conv2d(3, 63, 9, 2, pad_mode="valid"), (2, 3, 228, 304)),
    "transposed conv 2x2": (
        lambda: nn.Conv2dTranspose(512, 256, 2, 2, pad_mode="valid", has_bias=True),
        (2, 512, 14, 19),
    ),
    "dense 4070": (lambda: nn.Dense(4070, 4070), (2, 4070)),
    "max pool": (lambda: nn.MaxPool2d(2, 2), (2, 64, 228, 304)),
}


class _MeanSquare(nn.Cell):
    def __init__(self, layer: nn.Cell) -> None:
        super().__init__()
        self.layer = layer

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return (self.layer(x).astype(ms.float32) ** 2).mean() * SCALE


def distinct_neighbours(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return random numbers that fp16 holds exactly. Neighbours differ, so that every maximum is unique."""
    rows, columns = np.indices(shape[-2:])
    return (rng.integers(-16, 16, shape) / 8 + (rows % 2 * 2 + columns % 2) / 64).astype(np.float32)


def layers(level: str) -> Iterator[tuple[str, Array]]:
    """Yield the output of each distinct layer, and the gradients of its mean square by input and weights."""
    for name, (make, shape) in LAYERS.items():
        ms.set_seed(0)
        rng, layer = np.random.default_rng(0), make()
        for parameter in layer.get_parameters():
            parameter.set_data(ms.Tensor(rng.normal(0, 0.05, parameter.shape).astype(np.float32)))
        if level != "O0":
            layer.to_float(ms.float16)
        x = ms.Tensor(distinct_neighbours(rng, shape))
        yield name, layer(x).astype(ms.float32).asnumpy()
        weights = layer.trainable_params()
        gradients: Any = ms.grad(_MeanSquare(layer), 0, weights or None)(x)
        to_input, to_weights = gradients if weights else (gradients, ())
        yield f"{name}, gradient to its input", to_input.astype(ms.float32).asnumpy()
        for parameter, gradient in zip(weights, to_weights, strict=True):
            yield f"{name}, gradient to its {parameter.name.split('.')[-1]}", gradient.asnumpy()


def batch(net_name: str, rank: int = 0) -> list[Array]:
    """Return a fixed batch of 2: RGB, depth in metres, and the net's further inputs."""
    rng = np.random.default_rng(rank)
    rgb = rng.integers(0, 256, (2, *RGB_SHAPE), np.uint8)
    depth_m = (1 + 3 / 255 * rgb[:, :1, 4:224:4, 4:300:4]).astype(np.float32)
    kept_units = np.ones((2, PaperCoarseNet.dropout_units), np.float32)
    return [rgb, depth_m, *{"paper": [kept_units], "fine": [0.5 * np.log(depth_m)]}.get(net_name, [])]


def steps(net_name: str, level: str, chosen: device.Device) -> Iterator[tuple[str, Array]]:
    """Yield the losses of a few steps, the seconds spent launching and waiting, and the loss scale."""
    ms.set_seed(0)
    trainer = Trainer(NETS[net_name](), "composite", 1e-4, amp_level=level, device=chosen)
    losses, seconds = [], []
    for _ in range(STEPS):
        begun = time.perf_counter()
        wait = trainer.launch(*batch(net_name))
        launched = time.perf_counter()
        losses.append(wait().own_loss)
        seconds.append((launched - begun, time.perf_counter() - launched))
    yield "losses", np.array(losses)
    yield "seconds", np.array(seconds)
    yield "scale", np.array(trainer.scaler.scale_value.asnumpy() if trainer.scaler else 1.0)


def ranks(level: str, chosen: device.Device) -> Iterator[tuple[str, Array]]:
    """Train FineNet on several devices; the third step overflows on the last rank only. Yields a digest of the weights,
    and which updates were applied."""
    ms.set_seed(100 + chosen.rank)
    trainer = Trainer(FineNet(), "composite", 1e-4, amp_level=level, device=chosen)
    trainer.synchronise()
    applied = []
    for step in range(STEPS):
        rgb, depth_m, coarse = batch("fine", chosen.rank)
        if step == 2 and chosen.rank == chosen.ranks - 1:
            coarse = np.full_like(coarse, 1e6)  # infinite in fp16
        applied.append(trainer.run_step(rgb, depth_m, coarse)[1])
    weights = np.concatenate([parameter.asnumpy().ravel() for parameter in trainer.parameters.values()])
    yield "digest", np.array(hashlib.sha256(weights.tobytes()).hexdigest())
    yield "applied", np.array(applied)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("what", choices=("layers", *NETS, "ranks"))
    add("target", choices=("Ascend", "CPU"))
    add("device_id", type=int)
    add("level", choices=("O0", "O2"))
    add("folder", type=Path, help="arrays go to WHAT_TARGET_LEVEL.npz in it, those of ranks to rankN.npz")
    return parser.parse_args()


def main() -> None:
    options = parse_args()
    what, level = options.what, options.level
    chosen = device.select(options.target, options.device_id)
    name = f"{what}_{options.target}_{level}"
    if what == "layers":
        arrays = layers(level)
    elif what == "ranks":
        arrays, name = ranks(level, chosen), f"rank{chosen.rank}"
    else:
        arrays = steps(what, level, chosen)
    np.savez(options.folder / f"{name}.npz", **dict(arrays))


if __name__ == "__main__":
    main()
