"""Compiles the nets' training steps on the emulated Ascend, launches each three times, and prints what was called.

Usage: step.py launch|compile NET..., where NET is coarse, paper or fine, each at O0 and O2; fine:O2 is at O2 only.
Prints a line of JSON: {"NET LEVEL": {"operators": [...], "launch_syncs": n, "wait_syncs": n}}.
"""

import ctypes
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import src  # noqa: F401 (sets the environment that MindSpore reads)

import mindspore as ms  # isort: skip
import numpy as np

from src.net import DEPTH_SHAPE, RGB_SHAPE, CoarseNet, FineNet, PaperCoarseNet
from src.nets import device
from src.training.step import in_precision
from src.training.trainer import Trainer

NETS = {"coarse": CoarseNet, "paper": PaperCoarseNet, "fine": FineNet}
SIGNALS_AND_BAD_SAMPLES = [0, 0, 0, 0]

CANN = ctypes.CDLL("libascendcl.so")
CANN.emulator_operators.restype = ctypes.c_char_p


def make_trainer(net, level, chosen, with_coarse):
    """The Trainer of a net, as build.py makes it; `with_coarse`: FineNet's inputs come from a CoarseNet."""
    inputs = {}
    if isinstance(net, FineNet) and with_coarse:
        coarse = in_precision(CoarseNet().set_train(False), level)
        inputs = {"inputs": lambda rgb: (rgb, coarse(rgb))}
    return Trainer(net, "composite", 1e-4, amp_level=level, device=chosen, **inputs)


def operators():
    """The names of the operators called since this was last asked; "float64" is among them where a tensor was one."""
    return set(CANN.emulator_operators().decode().split())


def launch(net, trainer):
    """Three steps, batch 2; how often the host waited in the last one."""
    rgb, depth_m = np.zeros((2, *RGB_SHAPE), np.uint8), np.ones((2, *DEPTH_SHAPE), np.float32)
    rest = [np.ones((2, net.dropout_units), np.float32)] if isinstance(net, PaperCoarseNet) else []
    for _ in range(3):
        begun = CANN.emulator_synchronisations()
        wait = trainer.launch(rgb, depth_m, *rest, votes=SIGNALS_AND_BAD_SAMPLES)
        launched = CANN.emulator_synchronisations()
        wait()
        waited = CANN.emulator_synchronisations()
    return {"launch_syncs": launched - begun, "wait_syncs": waited - launched}


def compile_only(net, trainer):
    rgb, depth_m = ms.Tensor(np.zeros((2, *RGB_SHAPE), np.float32)), ms.Tensor(np.ones((2, *DEPTH_SHAPE), np.float32))
    rest = {"PaperCoarseNet": [ms.Tensor(np.ones((2, 4096), np.float32))], "FineNet": [depth_m]}
    trainer.train_step.compile(
        ms.Tensor([0, *SIGNALS_AND_BAD_SAMPLES], ms.float32), depth_m, rgb, *rest.get(type(net).__name__, [])
    )
    return {}


def main():
    action = {"launch": launch, "compile": compile_only}[sys.argv[1]]
    launches = action is launch  # at O0: nothing of the graph engine can be launched
    chosen = device.select("Ascend", 0, "O0" if launches else "auto")
    report = {"device": ms._c_expression.MSContext.get_instance().get_ascend_soc_version()}
    for argument in sys.argv[2:]:
        name, _, only = argument.partition(":")
        net = NETS[name]()
        for level in [only] if only else ["O0", "O2"]:  # O2 rewrites the net: it comes second
            trainer = make_trainer(net, level, chosen, launches)
            before = operators() & {"float64"}  # the others are not the step's
            counts = action(net, trainer)
            report[f"{name} {level}"] = {"operators": sorted(operators() | before), **counts}
    sys.stdout.write(json.dumps(report) + "\n")
    sys.stdout.flush()
    os._exit(0)  # what MindSpore does at the end expects a device


if __name__ == "__main__":
    main()
