"""Measures how costs grow with the amount of work, and what the nets need compared with the machine's highest rates."""

import contextlib
import multiprocessing
import re
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.base import cli
from src.data import image
from src.prediction import depth_files, predict
from src.prediction.pointcloud import Intrinsics


def exponent(points):
    """Return the slope of log cost over log size for (size, cost) pairs. 1: the cost is proportional to the size."""
    sizes, costs = np.log(np.array(points)).T
    return float(np.polyfit(sizes, costs, 1)[0])


def fastest(function, seconds=0.5):
    """Call `function` for about `seconds`, at least twice. Returns the seconds of the fastest call."""
    times, started_at = [], time.perf_counter()
    while len(times) < 2 or time.perf_counter() - started_at < seconds:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def peak_mb():
    """Return the largest memory of this process so far, in MB. (A process inherits the value of getrusage.)"""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


def alone(function, *arguments):
    """Run `function` in a new process and return its result."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def netless_predictor():
    """Return a DepthPredictor whose nets take no time: they predict zeros."""
    return predict.DepthPredictor(
        lambda rgb: np.zeros((len(rgb), 1, *image.DEPTH_SIZE), np.float32), lambda rgb, coarse: coarse
    )


def predict_by_pixels():
    """Return (megapixels, seconds) of predicting pictures of several sizes, without the nets."""
    predictor, points = netless_predictor(), []
    for height in (480, 960, 1920, 3840):
        picture = np.zeros((height, height * 4 // 3, 3), np.uint8)
        points.append((picture[..., 0].size / 1e6, fastest(lambda picture=picture: predictor(picture))))
    return points


def memory_by_pictures(folder):
    """Return (number of pictures of 3 megapixels, peak MB of a process that predicts them into files)."""
    pictures = [Path(folder, f"{number}.jpg") for number in range(16)]
    for number, path in enumerate(pictures):
        cv2.imwrite(str(path), np.full((1536, 2048, 3), number, np.uint8))
    return [
        (count, alone(_memory_of_predicting, pictures[:count], Path(folder, f"out{count}"))) for count in (2, 4, 8, 16)
    ]


def _memory_of_predicting(pictures, output):
    from src.prediction.job import find_jobs

    jobs, _ = find_jobs(pictures, output)
    writer = depth_files.Writer(("npy",), "viridis", 10.0, Intrinsics.kinect)
    depth_files.predict_all(jobs, netless_predictor(), writer, 8, cli.progress(len(jobs), "predicting", "file"))
    return peak_mb()


def log_by_steps(folder):
    """Return (rows, seconds) of writing the log of a stage."""
    from src.training.log import StageLog

    points = []
    for rows in (10_000, 30_000, 100_000):
        with tempfile.TemporaryDirectory(dir=folder) as work:
            log = StageLog(Path(work, "coarse.csv"))
            started_at = time.perf_counter()
            for step in range(rows):
                log.row(epoch=1, step=step, loss=1.0, step_seconds=0.1)
            points.append((rows, time.perf_counter() - started_at))
    return points


def scoring_by_pictures():
    """Return (number of maps, seconds) of computing the metrics of 55x74 maps."""
    from src import metrics

    rng, points = np.random.default_rng(0), []
    for count in (64, 256, 1024):
        depth_m = rng.uniform(1, 9, (count, 1, *image.DEPTH_SIZE)).astype(np.float32)
        log_depth = np.log(depth_m) + 0.1
        points.append((count, fastest(lambda a=log_depth, b=depth_m: metrics.evaluate(a, b, "depthnet"))))
    return points


def measure(folder):
    """Measure all costs. Returns a list of {"name", "points": (size, cost) pairs, "exponent"}. `folder`: for files."""
    measured = {
        "predict without the nets, seconds over megapixels": predict_by_pixels(),
        "predict's peak MB over pictures of 3 megapixels": memory_by_pictures(folder),
        "training log, seconds over rows": log_by_steps(folder),
        "metrics, seconds over pictures": scoring_by_pictures(),
    }
    return [{"name": name, "points": points, "exponent": exponent(points)} for name, points in measured.items()]


@contextlib.contextmanager
def observed(net, observe):
    """In this context, `observe(name, layer, output)` is called after each run of a layer with weights."""
    import mindspore as ms

    layers = {name: cell for name, cell in net.cells_and_names() if hasattr(cell, "weight")}
    hooks = [
        layer.register_forward_hook(lambda cell, _inputs, output, name=name: observe(name, cell, output))
        for name, layer in layers.items()
    ]
    mode = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)  # graph mode calls no hooks
    try:
        yield
    finally:
        ms.set_context(mode=mode)
        for hook in hooks:
            hook.remove()


def layer_operations(net, *inputs):
    """Return the number of multiplications and additions of each layer for these inputs, by name of the layer. All runs
    of a layer count."""
    import mindspore as ms

    operations = {}

    def count(name, layer, output):
        # In a transposed convolution whose stride equals its kernel size, an output value has `in_channels` products.
        products = layer.weight.shape[0] if "Transpose" in type(layer).__name__ else np.prod(layer.weight.shape[1:])
        operations[name] = operations.get(name, 0) + 2 * int(output.size) * int(products)

    with observed(net, count):
        net(*map(ms.Tensor, inputs))
    return operations


def floor():
    """Measure the machine's highest rates, and compute the times of the nets at these rates.

    Returns:
        (list of {"name", "value": text}, number of operations by name of net and layer).
    """
    from src import net
    from src.nets.exporting import example_inputs

    size = 2048
    a, b = (np.random.default_rng(seed).random((size, size), np.float32) for seed in (0, 1))
    gflops = 2 * size**3 / fastest(lambda: a @ b, 2) / 1e9
    source, target = np.ones(1 << 26, np.float32), np.ones(1 << 26, np.float32)
    gigabytes = 2 * source.nbytes / fastest(lambda: np.copyto(target, source), 1) / 1e9
    rows = {
        "float32 matrix product of 2,048 x 2,048 (NumPy)": f"{gflops:.0f} GFLOP/s",
        "copying 256 MB": f"{gigabytes:.1f} GB/s read and written",
    }
    layers = {}
    for network in (net.CoarseNet(), net.PaperCoarseNet(), net.FineNet()):
        label = type(network).__name__
        operations = layer_operations(network, *example_inputs(network, 1))
        layers |= {f"{label} {name}": value for name, value in operations.items()}
        total, parameters = sum(operations.values()), sum(parameter.size for parameter in network.get_parameters())
        rows[f"{label}: a picture's {total / 1e9:.2f} GFLOP at that rate"] = f"{total / gflops / 1e6:.1f} ms"
        rows[f"{label}: an Adam update of {parameters / 1e6:.1f} M parameters at that bandwidth"] = (
            f"{7 * 4 * parameters / gigabytes / 1e6:.1f} ms (reads four, writes three arrays)"
        )
    return [{"name": name, "value": value} for name, value in rows.items()], layers
