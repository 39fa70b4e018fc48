"""Compute what tools/ascend_selfcheck.py compares of the nets, with the same code on each device, or store what is
expected, computed on CPU: python tools/selfcheck_nets.py store CPU 0 O0 tools/selfcheck"""

import argparse
import hashlib
import json
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

from src.base.arrays import Array, Floats, Pixels
from src.net import DEPTH_CELLS, RGB_SHAPE, CoarseNet, FineNet, PaperCoarseNet
from src.nets import device, exporting
from src.training.trainer import Trainer

STEPS = 5
NETS: dict[str, Any] = {"coarse": CoarseNet, "paper": PaperCoarseNet, "fine": FineNet}


def fixed_net(name: str) -> nn.Cell:
    """Return a net with weights that no version of MindSpore or NumPy changes."""
    net: nn.Cell = NETS[name]()
    for number, parameter in enumerate(net.trainable_params()):
        if parameter.ndim > 1:
            drawn = np.random.RandomState(number).standard_normal(min(parameter.size, 1_000_003))
            to_depth = 0.1 if len(parameter) in (1, DEPTH_CELLS) else 1.0  # the outputs begin near 0
            scale = to_depth * np.sqrt(2 * len(parameter) / parameter.size)
            parameter.set_data(ms.Tensor(np.resize(scale * drawn, parameter.shape).astype(np.float32)))
    return net


def fixed_rgb(seed: int, count: int) -> Pixels:
    return np.random.RandomState(seed).randint(0, 256, (count, *RGB_SHAPE)).astype(np.uint8)


def batch(net_name: str, rank: int = 0) -> list[Array]:
    """Return a fixed batch of 2: RGB, depth in metres, and the net's further inputs."""
    rgb = fixed_rgb(rank, 2)
    depth_m = (1 + 3 / 255 * rgb[:, :1, 4:224:4, 4:300:4]).astype(np.float32)
    kept_units = np.ones((2, PaperCoarseNet.dropout_units), np.float32)
    return [rgb, depth_m, *{"paper": [kept_units], "fine": [0.5 * np.log(depth_m)]}.get(net_name, [])]


def steps(net_name: str, level: str, chosen: device.Device) -> Iterator[tuple[str, Array]]:
    """Yield the losses of a few steps, the seconds spent launching and waiting, and the loss scale."""
    trainer = Trainer(fixed_net(net_name), "composite", 1e-4, amp_level=level, device=chosen)
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


def export_nets(folder: Path) -> None:
    """Write what the C++ program reads: CoarseNet's and FineNet's MindIR, and images/0.bin."""
    for name in ("coarse", "fine"):
        exporting.export(fixed_net(name), "MINDIR", folder)
    (folder / "images").mkdir()
    image().tofile(folder / "images" / "0.bin")


def image() -> Floats:
    return fixed_rgb(0, 1) / np.float32(255)


def store(folder: Path) -> None:
    """Write what is expected: the losses of each net's steps in fp32, and FineNet's output for the image."""
    alone = device.Device("CPU")
    losses = {name: dict(steps(name, "O0", alone))["losses"].tolist() for name in NETS}
    (folder / "losses.json").write_text(json.dumps(losses, indent=1) + "\n")
    coarse, fine = (fixed_net(name).set_train(False) for name in ("coarse", "fine"))
    rgb = ms.Tensor(image())
    np.save(folder / "output.npy", fine(rgb, coarse(rgb)).asnumpy())


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("what", choices=(*NETS, "ranks", "export", "store"))
    add("target", choices=("Ascend", "CPU"))
    add("device_id", type=int)
    add("level", choices=("O0", "O2"), help="precision")
    add("folder", type=Path, help="arrays go to WHAT_LEVEL.npz in it, those of ranks to rankN.npz")
    add("--jit_level", default="auto")
    return parser.parse_args()


def main() -> None:
    options = parse_args()
    what, level = options.what, options.level
    chosen = device.select(options.target, options.device_id, options.jit_level)
    if what in ("export", "store"):
        {"export": export_nets, "store": store}[what](options.folder)
        return
    name = f"rank{chosen.rank}" if what == "ranks" else f"{what}_{level}"
    arrays = ranks(level, chosen) if what == "ranks" else steps(what, level, chosen)
    np.savez(options.folder / f"{name}.npz", **dict(arrays))


if __name__ == "__main__":
    main()
