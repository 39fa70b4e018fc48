"""How fast training pairs are fed: this repo's two forms beside plain Pillow, each in a process of its own."""

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
    """Batches of `plain_sample`."""
    rng = np.random.default_rng(0)
    with ThreadPoolExecutor(workers) as pool:
        for step in range(steps):
            chosen = [pairs[index] for index in schedule.batch(step)[1]]
            samples = list(pool.map(lambda pair: plain_sample(pair, rng), chosen))
            yield [np.stack(arrays) for arrays in zip(*samples, strict=True)]


class TorchPairs:
    """This repo's transforms of a pair as a PyTorch data set."""

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
    """Batches of PyTorch's DataLoader, its workers being processes, epoch after epoch."""
    from torch.utils.data import DataLoader

    batches = DataLoader(
        TorchPairs(pairs), batch_size, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=True
    )
    epochs = itertools.chain.from_iterable(itertools.repeat(batches))
    return itertools.islice(epochs, steps)


def measure(kind, folder, batch_size, workers, pairs):
    """(pairs/s, processor milliseconds a pair, peak MB of the process) after the first batch, which fills the queue;
    for "later" after the first epoch."""
    from src.data.packed import open_training

    source = open_training(folder)
    schedule = Schedule(len(source.names), batch_size, seed=0)
    if kind == "pytorch":
        batches = pytorch_batches(source.pairs, batch_size, 3 + pairs // batch_size, workers)
    elif kind == "plain":
        batches = plain_batches(source.pairs, schedule, 3 + pairs // 8 // batch_size, workers)
    else:
        before = schedule.steps_per_epoch if kind == "later" else 0
        batches = TrainingData(source, schedule, workers).batches(0, before + 3 + pairs // batch_size)
        for _ in range(before):
            next(batches)
    next(batches)
    began, processor_began, count = time.perf_counter(), time.process_time(), 0
    for rgb, *_ in batches:
        count += len(rgb)
    seconds, processor_seconds = time.perf_counter() - began, time.process_time() - processor_began
    if kind == "pytorch":
        processor_seconds = float("nan")  # its workers are processes of their own
    return count / seconds, 1000 * processor_seconds / count, growth.peak_mb()


def measure_all(pipelines, rounds):
    """The median of each figure of each pipeline over `rounds`, run in turn, each time in a new process."""
    results = {name: [] for name in pipelines}
    with cli.progress(rounds * len(pipelines), "measuring", "run") as bar:
        for _ in range(rounds):
            for name, arguments in pipelines.items():
                results[name].append(growth.alone(measure, *arguments))
                bar.update()
    return {name: [statistics.median(column) for column in zip(*runs, strict=True)] for name, runs in results.items()}


def steps_of_a_pair(pairs):
    """{step: microseconds of one thread} of what the files of a pair go through; the packed form needs the last."""
    keep_freed_memory()
    seconds = {}

    def timed(step, function, *arguments):
        began = time.thread_time()
        result = function(*arguments)
        seconds.setdefault(step, []).append(time.thread_time() - began)
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
    """Both tables as Markdown."""
    first = next(iter(results.values()))[0]
    lines = [
        "| pipeline | pairs/s | ratio | processor ms a pair | cores for one Ascend 910 | for eight | peak MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (rate, milliseconds, megabytes) in results.items():
        cores = ASCEND_910_PAIRS_PER_S * milliseconds / 1000
        spent = [
            "" if milliseconds != milliseconds else text
            for text in (f"{milliseconds:.2f}", f"{cores:.1f}", f"{8 * cores:.0f}")
        ]
        lines.append(f"| {name} | {rate:.0f} | {rate / first:.1f} | {' | '.join(spent)} | {megabytes:.0f} |")
    lines += ["", "| what a pair of files goes through | us |", "|---|---|"]
    return "\n".join([*lines, *(f"| {step} | {value:.0f} |" for step, value in steps.items())]) + "\n"


def compare(data, packed_folder=None, batch_size=32, workers=2, rounds=3, pairs=3000):
    """Both tables of a NYU folder; it is packed into a temporary folder if `packed_folder` is None."""
    with tempfile.TemporaryDirectory() as folder:
        if packed_folder is None:
            from src.data import packed

            packed_folder = Path(folder, "packed")
            packed.pack(data, packed_folder, workers)
        every = list_train(data)
        in_an_epoch = min(pairs, len(every) - 4 * batch_size)
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
                "this repo, files, first epoch": ("ours", data, batch_size, workers, in_an_epoch),
                "this repo, files, later epochs": ("later", data, batch_size, workers, pairs),
                "this repo, packed, 1 thread": ("ours", packed_folder, batch_size, 1, 4 * pairs),
                "this repo, packed": ("ours", packed_folder, batch_size, workers, 4 * pairs),
            },
            rounds,
        )
    return report(results, steps_of_a_pair(every[::5]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("data", type=Path, help="the NYU folder")
    parser.add_argument("--packed", type=Path, help="the same, packed (default: packed into a temporary folder)")
    parser.add_argument("--batch_size", type=cli.positive_int, default=32)
    parser.add_argument("--workers", type=cli.positive_int, default=2)
    parser.add_argument("--rounds", type=cli.positive_int, default=3)
    parser.add_argument("--pairs", type=cli.positive_int, default=3000, help="pairs a run")
    options = parser.parse_args()
    sys.stdout.write(
        compare(options.data, options.packed, options.batch_size, options.workers, options.rounds, options.pairs)
    )
    return 0


if __name__ == "__main__":
    cli.run(main)
