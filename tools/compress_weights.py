"""Compress a checkpoint: store float16, and each dense layer of PaperCoarseNet as two factors. Every command loads it.

A dense layer's weight is projected onto the leading principal directions of the layer's outputs for training pictures.
No other weight of that rank changes these outputs less.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.base import cli
from src.base.errors import UserError
from src.base.files import StrPath

# The directions are computed from EPOCHS of augmented pictures, with at most MOST_PAIRS pictures in each.
EPOCHS = 3
MOST_PAIRS = 1000
if TYPE_CHECKING:
    from src.base.arrays import Array, Floats
    from src.net import PaperCoarseNet


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="the checkpoint to compress")
    parser.add_argument("output", type=Path, help="the new checkpoint")
    parser.add_argument("--data_url", type=Path, help="the NYU folder; needed for PaperCoarseNet")
    parser.add_argument("--rank_fc6", type=cli.positive_int, default=1024, help="rank of the factors of fc6")
    parser.add_argument("--rank_fc7", type=cli.positive_int, default=256, help="rank of the factors of fc7")
    return parser.parse_args(arguments)


def layer_outputs(net: PaperCoarseNet, folder: StrPath) -> tuple[Floats, Floats]:
    """Compute the outputs of the dense layers for augmented training pictures.

    Args:
        net: the net, in evaluation mode.
        folder: the NYU folder, or a packed folder.

    Returns:
        (outputs of fc6 before its ReLU (N, 4096), outputs of fc7 (N, 4070)).
    """
    import mindspore as ms
    import numpy as np

    from src.data.packed import open_training
    from src.data.sampling import Schedule
    from src.data_loader import TrainingData

    source = open_training(folder)
    data = TrainingData(
        source,
        Schedule(len(source.names), min(16, len(source.names)), seed=0),
        cli.default_workers(),
        augmentation="paper",
    )
    steps = EPOCHS * min(data.schedule.steps_per_epoch, -(-MOST_PAIRS // data.schedule.batch_size))
    fc6, fc7 = [], []
    with cli.progress(steps, "computing outputs", "step") as bar:
        for rgb, _ in data.batches(0, steps):
            units = net.fc6(net.features(ms.Tensor(rgb.astype(np.float32) / 255)))
            fc6.append(units.asnumpy())
            fc7.append(net.fc7(net.relu(units)).asnumpy())
            bar.update()
    return np.concatenate(fc6), np.concatenate(fc7)


def factors(weight: Floats, bias: Floats, outputs: Floats, rank: int) -> tuple[Array, Array, Array]:
    """Approximate the weight of a dense layer by a product of two factors.

    Args:
        weight: (O, I).
        bias: (O,).
        outputs: outputs of the layer (N, O).
        rank: largest rank of the product.

    Returns:
        (left factor (O, rank), right factor (rank, I), new bias (O,)).
    """
    import numpy as np

    mean = outputs.mean(0)
    directions = np.linalg.svd(outputs - mean, full_matrices=False)[2][:rank].T
    return directions, directions.T @ weight, mean + directions @ (directions.T @ (bias - mean))


def main() -> int:
    options = parse_args()
    if options.output.exists():
        raise UserError(f"{options.output}: already there")
    import numpy as np

    from src.net import PaperCoarseNet
    from src.nets import checkpoint, device

    device.select("CPU", 0)
    saved = checkpoint.load(options.checkpoint)
    arrays, info = checkpoint.weights_only(saved), saved.info
    if info.get("stage") == "coarse" and not saved.compressed:
        info = {**info, checkpoint.WHOLE_SHA256: checkpoint.digest(checkpoint.load_coarse(options.checkpoint))}
    if "fc7.weight" in arrays:
        if not options.data_url:
            raise UserError(f"{options.checkpoint}: PaperCoarseNet: expected --data_url")
        net = PaperCoarseNet()
        checkpoint.assign(net, saved)
        outputs = layer_outputs(net.set_train(False), options.data_url)
        ranks = options.rank_fc6, options.rank_fc7
        for layer, rank, of_layer in zip(("fc6", "fc7"), ranks, outputs, strict=True):
            left, right, bias = factors(arrays.pop(f"{layer}.weight"), arrays[f"{layer}.bias"], of_layer, rank)
            arrays |= {
                f"{layer}.weight{checkpoint.LEFT}": left,
                f"{layer}.weight{checkpoint.RIGHT}": right,
                f"{layer}.bias": bias,
            }
    checkpoint.save(options.output, {name: array.astype(np.float16) for name, array in arrays.items()}, info)
    logging.info("%s: %.1f MB", options.output, options.output.stat().st_size / 1e6)
    return 0


if __name__ == "__main__":
    cli.run(main)
