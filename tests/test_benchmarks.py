"""What the benchmarks compare is the same, and what they count is right."""

import json
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import growth
from src.net import CoarseNet, FineNet, PaperCoarseNet
from src.nets.exporting import example_inputs
from tests.conftest import ROOT
from tests.twins import TWINS, weights


@pytest.mark.parametrize("kind", [CoarseNet, PaperCoarseNet, FineNet])
def test_operations_are_those_that_pytorch_counts(kind):
    net, name = kind(), kind.__name__
    inputs = example_inputs(net, 1)
    operations = growth.layer_operations(net, *inputs)
    with FlopCounterMode(display=False) as counter:
        TWINS[name](weights(net), *map(torch.from_numpy, inputs))
    assert sum(operations.values()) == counter.get_total_flops()
    assert set(operations) == {parameter.name.split(".")[0] for parameter in net.get_parameters()}


def test_the_exponent_is_the_power():
    assert growth.exponent([(size, 3 * size**1.5) for size in (1, 4, 9)]) == pytest.approx(1.5)


def side(*arguments):
    """What benchmarks/peers.py says for two runs: the check, the seconds, the memory."""
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "peers.py", *map(str, arguments)],
        input="2\n",
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith(("{", "["))]


@pytest.mark.long
def test_both_sides_train_the_same_net_on_the_same_loss():
    ours, theirs = (side("train", backend, "FineNet", 2, 2) for backend in ("mindspore", "pytorch-channels-last"))
    assert ours[0]["check"] == pytest.approx(theirs[0]["check"], rel=1e-5)
    assert len(ours[1]) == len(theirs[1]) == 2 and min(ours[1] + theirs[1]) > 0
    assert ours[2]["peak_mb"] > 100


@pytest.mark.long
def test_both_sides_predict_the_same(tmp_path):
    from src.nets import checkpoint

    ms.set_seed(0)
    (tmp_path / "Ckpt").mkdir()
    (tmp_path / "img_data").mkdir()
    for net in (PaperCoarseNet(), FineNet()):
        name = type(net).__name__.replace("Paper", "")
        checkpoint.save(
            tmp_path / "Ckpt" / f"Final{name}.ckpt",
            {p.name: p for p in net.get_parameters()},
            {"net": type(net).__name__},
        )
    np.random.default_rng(0).random((3, 228, 304), np.float32).tofile(tmp_path / "img_data" / "1.bin")
    checks = side("files", "mindspore", "both", 1, 2, tmp_path)
    written = [np.fromfile(path, np.float32) for path in tmp_path.glob("out-*/1.bin")]
    assert len(written) == 1 and np.abs(written[0]).mean() == pytest.approx(checks[0]["check"], rel=1e-5)
