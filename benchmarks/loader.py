"""How fast training pairs are fed: this repo's loader beside a plain Pillow-and-float64 pipeline, in the same run."""

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageEnhance

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src import cli
from src.data_loader import PlainPairs, Schedule, TrainingData, list_train


def plain_sample(pair, rng):
    """What is usually written: augment the full picture with Pillow, make it float64, then crop and resize."""
    rgb, depth = Image.open(pair.rgb), Image.open(pair.depth)
    if rng.random() < 0.5:
        rgb, depth = rgb.transpose(Image.Transpose.FLIP_LEFT_RIGHT), depth.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    rgb = ImageEnhance.Brightness(rgb).enhance(rng.uniform(0.8, 1.0))
    rgb = ImageEnhance.Sharpness(rgb).enhance(rng.uniform(0.8, 1.2))
    rgb = (np.array(rgb) / 255.0)[12:468, 16:624]
    depth_m = (np.array(depth) / 255.0 * 10.0)[12:468, 16:624]
    rgb = cv2.resize(rgb, (304, 228)).transpose(2, 0, 1)
    return rgb.astype(np.float32), cv2.resize(depth_m, (74, 55))[None].astype(np.float32)


def plain_batches(pairs, schedule, steps, workers):
    rng = np.random.default_rng(0)
    with ThreadPoolExecutor(workers) as pool:
        for step in range(steps):
            chosen = [pairs[index] for index in schedule.batch(step)[1]]
            samples = list(pool.map(lambda pair: plain_sample(pair, rng), chosen))
            yield [np.stack(arrays) for arrays in zip(*samples, strict=True)]


def pairs_per_second(batches):
    """Pairs/s after the first batch, which fills the queue."""
    iterator = iter(batches)
    next(iterator)
    began, count = time.perf_counter(), 0
    for rgb, *_ in iterator:
        count += len(rgb)
    return count / (time.perf_counter() - began)


def measure(folder, batch_size, workers, rounds, pairs):
    """(plain, ours) pairs/s, the median over `rounds` runs of each in turn."""
    every = list_train(folder)
    schedule = Schedule(len(every), batch_size, seed=0)
    steps = max(3, pairs // batch_size)
    data = TrainingData(PlainPairs(folder), schedule, workers)
    results = [(pairs_per_second(plain_batches(every, schedule, max(3, steps // 8), workers)),
                pairs_per_second(data.batches(0, steps))) for _ in range(rounds)]
    return np.median(results, axis=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("data", type=Path, help="the NYU folder")
    parser.add_argument("--batch_size", type=cli.positive_int, default=32)
    parser.add_argument("--workers", type=cli.positive_int, default=2)
    parser.add_argument("--rounds", type=cli.positive_int, default=3)
    parser.add_argument("--pairs", type=cli.positive_int, default=960, help="pairs a run")
    options = parser.parse_args()
    plain, ours = measure(options.data, options.batch_size, options.workers, options.rounds, options.pairs)
    sys.stdout.write("| pipeline | pairs/s | ratio |\n|---|---|---|\n"
                     f"| plain (Pillow, float64) | {plain:.0f} | 1.0 |\n"
                     f"| this repo | {ours:.0f} | {ours / plain:.1f} |\n")
    return 0


if __name__ == "__main__":
    cli.run(main)
