"""Measures how fast training pairs are loaded: this repo's loader (files and packed form), PyTorch's, and plain Pillow.

Each measurement runs in a new process.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageEnhance

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import growth
from src.base import cli
from src.data import image
from src.data.augmentation import augment
from src.data.listing import list_train
from src.data.plain import decode_train_pair, train_target
from src.data.sampling import Schedule
from src.data_loader import TrainingData, keep_freed_memory

ASCEND_910_PAIRS_PER_S = 680


def plain_sample(pair, rng):
    """Load a training pair in the usual way: augment the full picture with Pillow, convert it to float64, then crop and
    resize it.

    Returns:
        (RGB float32 (3, 228, 304), metres float32 (1, 55, 74)).
    """
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
    """Yield batches of `plain_sample`."""
    rng = np.random.default_rng(0)
    with ThreadPoolExecutor(workers) as pool:
        for step in range(steps):
            chosen = [pairs[index] for index in schedule.batch(step)[1]]
            samples = list(pool.map(lambda pair: plain_sample(pair, rng), chosen))
            yield [np.stack(arrays) for arrays in zip(*samples, strict=True)]


class TorchPairs:
    """A PyTorch data set with this repo's transforms."""

    def __init__(self, pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        rgb, pixels = decode_train_pair(self.pairs[index])
        rgb_out, depth_out = np.empty((3, *image.RGB_SIZE), np.uint8), np.empty((1, *image.DEPTH_SIZE), np.float32)
        augment(image.network_pixels(rgb), train_target(pixels), np.random.default_rng(index), rgb_out, depth_out)
        return rgb_out, depth_out


def pytorch_batches(pairs, batch_size, steps, workers):
    """Return an iterator over `steps` batches of PyTorch's DataLoader, over as many epochs as needed. Its workers are
    processes."""
    from torch.utils.data import DataLoader

    batches = DataLoader(
        TorchPairs(pairs), batch_size, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=True
    )
    epochs = itertools.chain.from_iterable(itertools.repeat(batches))
    return itertools.islice(epochs, steps)


def measure(kind, folder, batch_size, workers, pairs):
    """Measure a loader, without its first batch, which includes the start.

    Args:
        kind: "plain": plain Pillow; "pytorch": PyTorch's DataLoader; "ours": this repo's loader; "later": this repo's
            loader after its first epoch.
        folder: the NYU folder, or a packed folder.
        batch_size: pairs per batch.
        workers: number of threads or processes.
        pairs: about the number of pairs to load.

    Returns:
        (pairs per second, processor milliseconds per pair, peak MB of the process).
    """
    from src.data.packed import open_training

    source = open_training(folder)
    schedule = Schedule(len(source.names), batch_size, seed=0)
    if kind == "pytorch":
        batches = pytorch_batches(source.pairs, batch_size, 3 + pairs // batch_size, workers)
    elif kind == "plain":
        batches = plain_batches(source.pairs, schedule, 3 + pairs // 8 // batch_size, workers)
    else:
        skipped = schedule.steps_per_epoch if kind == "later" else 0
        batches = TrainingData(source, schedule, workers).batches(0, skipped + 3 + pairs // batch_size)
        for _ in range(skipped):
            next(batches)
    next(batches)
    started_at, processor_started_at, count = time.perf_counter(), time.process_time(), 0
    for rgb, *_ in batches:
        count += len(rgb)
    seconds, processor_seconds = time.perf_counter() - started_at, time.process_time() - processor_started_at
    if kind == "pytorch":
        processor_seconds = float("nan")  # does not include its worker processes
    return count / seconds, 1000 * processor_seconds / count, growth.peak_mb()


def measure_all(pipelines, rounds):
    """Run the pipelines in turn, `rounds` times, each time in a new process.

    Args:
        pipelines: arguments of `measure` by name of the pipeline.
        rounds: number of rounds.

    Returns:
        The median of each figure of `measure`, by name of the pipeline.
    """
    results = {name: [] for name in pipelines}
    with cli.progress(rounds * len(pipelines), "measuring", "run") as bar:
        for _ in range(rounds):
            for name, arguments in pipelines.items():
                results[name].append(growth.alone(measure, *arguments))
                bar.update()
    return {name: [statistics.median(column) for column in zip(*runs, strict=True)] for name, runs in results.items()}


def steps_of_a_pair(pairs):
    """Return the mean processor microseconds of each step of loading a pair from files, by name of the step. A pair of
    the packed form goes only through the last step."""
    keep_freed_memory()
    seconds = {}

    def timed(step, function, *arguments):
        started_at = time.thread_time()
        result = function(*arguments)
        seconds.setdefault(step, []).append(time.thread_time() - started_at)
        return result

    rgb_out, depth_out = np.empty((3, *image.RGB_SIZE), np.uint8), np.empty((1, *image.DEPTH_SIZE), np.float32)
    for number, pair in enumerate(pairs):
        rgb = timed("read and decode RGB (JPEG)", image.load_rgb, pair.rgb)
        depth = timed("read and decode depth (PNG)", image.load_train_depth_pixels, pair.depth)
        rgb = timed("crop and resize RGB", lambda rgb: image.resize(image.crop(rgb), image.RGB_SIZE), rgb)
        depth_m = timed("crop and resize depth", image.network_depth, depth)[0]
        timed("augment, write into the batch", augment, rgb, depth_m, np.random.default_rng(number), rgb_out, depth_out)
    return {step: 1e6 * statistics.mean(values) for step, values in seconds.items()}


def report(results, steps):
    """Return the results of `measure_all` and `steps_of_a_pair` as two Markdown tables."""
    first = next(iter(results.values()))[0]
    lines = [
        "| pipeline | pairs/s | ratio | processor ms a pair | cores for one Ascend 910 | for eight | peak MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (rate, milliseconds, megabytes) in results.items():
        cores = ASCEND_910_PAIRS_PER_S * milliseconds / 1000
        costs = [
            "" if milliseconds != milliseconds else text  # NaN: not measured
            for text in (f"{milliseconds:.2f}", f"{cores:.1f}", f"{8 * cores:.0f}")
        ]
        lines.append(f"| {name} | {rate:.0f} | {rate / first:.1f} | {' | '.join(costs)} | {megabytes:.0f} |")
    lines += ["", "| what a pair of files goes through | us |", "|---|---|"]
    return "\n".join([*lines, *(f"| {step} | {value:.0f} |" for step, value in steps.items())]) + "\n"


def compare(data, packed_folder=None, batch_size=32, workers=2, rounds=3, pairs=3000):
    """Measure all loaders on a NYU folder.

    Args:
        data: the NYU folder.
        packed_folder: the same data, packed. Default: packed into a temporary folder.
        batch_size, workers, pairs: as in `measure`.
        rounds: number of rounds.

    Returns:
        Two tables, as `report` returns them.
    """
    with tempfile.TemporaryDirectory() as folder:
        if packed_folder is None:
            from src.data import packed

            packed_folder = Path(folder, "packed")
            packed.pack(data, packed_folder, workers)
        train_pairs = list_train(data)
        first_epoch = min(pairs, len(train_pairs) - 4 * batch_size)  # pairs to load that do not exceed an epoch
        results = measure_all(
            {
                "plain Pillow, float64, one thread": ("plain", data, batch_size, 1, pairs),
                f"the same, {workers} threads": ("plain", data, batch_size, workers, pairs),
                f"PyTorch DataLoader, this repo's transforms, {workers} processes": (
                    "pytorch",
                    data,
                    batch_size,
                    workers,
                    pairs // 2,
                ),
                "this repo, files, first epoch": ("ours", data, batch_size, workers, first_epoch),
                "this repo, files, later epochs": ("later", data, batch_size, workers, pairs),
                "this repo, packed, 1 thread": ("ours", packed_folder, batch_size, 1, 4 * pairs),
                "this repo, packed": ("ours", packed_folder, batch_size, workers, 4 * pairs),
            },
            rounds,
        )
    return report(results, steps_of_a_pair(train_pairs[::5]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("data", type=Path, help="the NYU folder")
    parser.add_argument("--packed", type=Path, help="the same data, packed (default: packed into a temporary folder)")
    parser.add_argument("--batch_size", type=cli.positive_int, default=32)
    parser.add_argument("--workers", type=cli.positive_int, default=2)
    parser.add_argument("--rounds", type=cli.positive_int, default=3)
    parser.add_argument("--pairs", type=cli.positive_int, default=3000, help="pairs per run")
    options = parser.parse_args()
    sys.stdout.write(
        compare(options.data, options.packed, options.batch_size, options.workers, options.rounds, options.pairs)
    )
    return 0


if __name__ == "__main__":
    cli.run(main)
