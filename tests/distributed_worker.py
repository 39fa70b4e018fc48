"""A worker that msrun starts: trains FineNet on seeded arrays and writes what each rank has after every step.

Usage: distributed_worker.py OUTPUT_FOLDER BATCH_SIZE STEPS. Alone (without msrun) it is the single process to compare
with.
"""

import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import mindspore as ms
import numpy as np

from src.data.sampling import Schedule
from src.net import FineNet
from src.nets import device
from src.training.trainer import Trainer

SAMPLES = 16


def sample(index):
    rng = np.random.default_rng(int(index))
    rgb = rng.integers(0, 256, (3, 228, 304), np.uint8)
    depth_m = 1 + 3 / 255 * rgb[:1, 4:224:4, 4:300:4] + index % 3
    return rgb, depth_m.astype(np.float32), np.log(depth_m).astype(np.float32) * np.float32(0.5)


def main():
    folder, batch_size, steps = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    mine = device.select("CPU")
    ms.set_seed(100 + mine.rank)  # different weights, until rank 0's are handed out
    trainer = Trainer(FineNet(), "composite", 1e-3, device=mine)
    trainer.synchronise()
    schedule = Schedule(SAMPLES, batch_size, seed=0, rank=mine.rank, ranks=mine.ranks)
    digests, losses = [], []
    for step in range(steps):
        rgb, depth_m, coarse = map(np.stack, zip(*map(sample, schedule.batch(step)[1]), strict=True))
        loss, _ = trainer.run_step(rgb, depth_m, coarse)
        losses.append(float(mine.sum([loss])[0]) / mine.ranks)
        weights = np.concatenate([p.asnumpy().ravel() for p in trainer.parameters.values()])
        digests.append(hashlib.sha256(weights.tobytes()).hexdigest())
    np.savez(folder / f"rank{mine.rank}of{mine.ranks}.npz", digests=digests, losses=losses, weights=weights)


if __name__ == "__main__":
    main()
