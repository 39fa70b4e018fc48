"""Measure every speed that the documents state, and that of the alternatives, in one run.

The programs of a comparison (its sides) are processes that wait for their turn (benchmarks/peers.py). In each round
every side runs for about the same time, and the order of the sides changes. A result is the median over the rounds. Its
ratio is the best peer's time over this side's time in the same round. A ratio that varies by more than 15 % between
rounds is marked with "~".
"""

import argparse
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import growth, loader
from src.base import cli
from src.base.errors import CheckFailed, UserError
from src.base.files import writable_folder, write_text
from src.scoring import visual

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "ascend310_infer" / "build" / "depthnet_infer"
SPREAD = 0.15  # largest relative variation of a ratio that is not marked
NO_SPINNING = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}  # waiting sides must not use the processor
TRAINING_SIDES = ("mindspore", "pytorch", "pytorch-channels-last", "pytorch-compile")
INFERENCE_SIDES = ("mindspore", "onnxruntime", "openvino", "pytorch", "pytorch-compile")
FULL_ONLY = ("pytorch-channels-last", "pytorch-compile")  # left out of a quick run
LITE = "C++ program, MindSpore Lite"
OURS = (LITE, "mindspore")  # the best peer is the fastest of the other sides


def python(program, *arguments):
    """Return the command line that runs a Python program of this repo."""
    return [sys.executable, str(ROOT / program), *map(str, arguments)]


class Side:
    """A side of a comparison: a process of benchmarks/peers.py.

    Args:
        arguments: of benchmarks/peers.py.
    """

    def __init__(self, *arguments):
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the side)
        self.process = subprocess.Popen(
            python("benchmarks/peers.py", *arguments),
            stdin=subprocess.PIPE,
            text=True,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env={**os.environ, **NO_SPINNING},
        )
        self.check = self._read()["check"]

    def _read(self):
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            last = (self.errors.read().strip().splitlines() or [""])[-1]
            raise CheckFailed(f"{' '.join(self.process.args)}: ended early: {last}")
        return json.loads(line)

    def run(self, count):
        """Run `count` times. Returns the seconds of each run."""
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return self._read()

    median = staticmethod(statistics.median)

    def close(self):
        """End the process. Returns its peak memory in MB."""
        self.process.stdin.close()
        peak_mb = self._read()["peak_mb"]
        self.process.wait()
        self.errors.close()
        return peak_mb


class LiteSide:
    """The C++ program as a side of a comparison: a new process per round, timed without its start and first picture.

    Args:
        threads: number of threads.
        folder: as `prepare` fills it.
        files: whether the time of a picture includes reading and writing its files.
    """

    check = None

    def __init__(self, threads, folder, files):
        self.threads, self.folder, self.files = threads, folder, files
        self.names = sorted(path.name for path in (folder / "img_data").glob("*.bin"))

    def _whole(self, count):
        """Predict `count` pictures. Returns (seconds of the process, the times that the program reports)."""
        with tempfile.TemporaryDirectory(dir=self.folder) as work:
            pictures = Path(work, "img_data")
            pictures.mkdir()
            for name in self.names[:count]:
                (pictures / name).symlink_to(self.folder / "img_data" / name)
            started_at = time.perf_counter()
            subprocess.run(
                [
                    PROGRAM,
                    "--coarse_mindir",
                    self.folder / "MindIR" / "FinalCoarseNet.mindir",
                    "--fine_mindir",
                    self.folder / "MindIR" / "FinalFineNet.mindir",
                    "--dataset_path",
                    pictures,
                    "--device_type",
                    "CPU",
                    "--threads",
                    str(self.threads),
                ],
                cwd=work,
                check=True,
                capture_output=True,
            )
            seconds = time.perf_counter() - started_at
            return seconds, (Path(work) / "time_Result" / "test_perform_static.txt").read_text()

    def run(self, count):
        """Predict about `count` pictures. Returns [seconds per picture] with files, else [median, 95th percentile] of
        the nets' seconds, as the program reports them."""
        count = min(max(count, 10), len(self.names))
        seconds, text = self._whole(count)
        if self.files:
            return [(seconds - self._whole(1)[0]) / (count - 1)]
        return [float(text.split(f"{word}: ")[1].split(" ms")[0]) / 1000 for word in ("median", "95th percentile")]

    @staticmethod
    def median(seconds):
        """Return the median of a result of `run`."""
        return seconds[0]

    def close(self):
        return None


def compare(name, images, sides, bar, options):
    """Time the sides of a comparison in turn.

    Args:
        name: name of the comparison.
        images: number of images in a run.
        sides: function that starts the side, by label.
        bar: updated for each run.
        options: of the command.

    Returns:
        {"name", "images", "best_peer": label, "sides": by label {"median_s", "p95_s", "peak_mb", "rounds_s",
        "samples_s", "ratio", "ratios", "unsteady"}}.

    Raises CheckFailed if the sides do not compute the same.
    """
    running = {label: start() for label, start in sides.items() if not options.quick or label not in FULL_ONLY}
    checks = {label: side.check for label, side in running.items() if side.check is not None}
    if max(checks.values()) - min(checks.values()) > 1e-3 * max(1, abs(max(checks.values()))):
        raise CheckFailed(f"{name}: the sides do not compute the same: {checks}")
    counts = {label: min(200, max(1, round(options.seconds / max(side.run(1))))) for label, side in running.items()}
    samples, labels = {label: [] for label in running}, list(running)
    for number in range(options.rounds):
        for label in labels[number % len(labels) :] + labels[: number % len(labels)]:
            samples[label].append(running[label].run(counts[label]))
            bar.update()
    medians = {label: [running[label].median(times) for times in rounds] for label, rounds in samples.items()}
    best = min((label for label in labels if label not in OURS), key=lambda label: statistics.median(medians[label]))
    result = {"name": name, "images": images, "best_peer": best, "sides": {}}
    for label, side in running.items():
        all_times = [seconds for times in samples[label] for seconds in times]
        ratios = [best_s / own_s for best_s, own_s in zip(medians[best], medians[label], strict=True)]
        result["sides"][label] = {
            "median_s": statistics.median(medians[label]),
            "p95_s": float(np.percentile(all_times, 95)),
            "peak_mb": side.close(),
            "rounds_s": medians[label],
            "samples_s": samples[label],
            "ratio": statistics.median(ratios),
            "ratios": ratios,
            "unsteady": max(ratios) > (1 + SPREAD) * min(ratios),
        }
    return result


def training(options, bar):
    """Compare a training step of each net with PyTorch, for each batch size. Yields the results of `compare`."""
    for net in ("CoarseNet", "PaperCoarseNet", "FineNet"):
        for batch in options.batches:
            sides = {
                label: lambda label=label, net=net, batch=batch: Side("train", label, net, batch, options.threads)
                for label in TRAINING_SIDES
            }
            yield compare(f"training step, {net}, batch {batch}", batch, sides, bar, options)


def inference(options, bar, folder):
    """Compare the prediction of an image with both nets in the C++ program and the other runtimes, with and without
    reading and writing files. Yields the results of `compare`."""
    for kind in ("files",) if options.quick else ("infer", "files"):
        for batch in (1,) if options.quick else (1, 8):
            sides = {
                label: lambda label=label, kind=kind, batch=batch: Side(
                    kind, label, "both", batch, options.threads, folder
                )
                for label in INFERENCE_SIDES
            }
            if batch == 1 and PROGRAM.exists():
                sides = {LITE: lambda kind=kind: LiteSide(options.threads, folder, kind == "files"), **sides}
            name = f"inference, batch {batch}{', files included' if kind == 'files' else ''}"
            yield compare(name, batch, sides, bar, options)


def run_command(command, cwd, until=None):
    """Run a command to its end. Returns the seconds to its end, or to the first line of its output with the text
    `until`. Raises CheckFailed if it fails or does not print that text."""
    started_at = time.perf_counter()
    with subprocess.Popen(command, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        lines, seconds = [], None
        for line in process.stdout:
            lines.append(line)
            if until and until in line and seconds is None:
                seconds = time.perf_counter() - started_at
    if process.returncode:
        raise CheckFailed(f"{' '.join(map(str, command))}: exit code {process.returncode}\n{''.join(lines[-15:])}")
    if until and seconds is None:
        raise CheckFailed(f"{' '.join(map(str, command))}: never said {until!r}")
    return seconds or time.perf_counter() - started_at


RUNTIMES = ("MindSpore", "ONNX")


def commands_to_time(folder, data, pictures):
    """Return the command lines to time, with the text of the output at which the time ends, or None, by label.

    Args:
        folder: as `prepare` fills it.
        data: the NYU folder.
        pictures: test pictures of this folder.
    """
    checkpoints, exports = folder / "Ckpt", folder / "ONNX"
    nets = {
        "MindSpore": (
            "--coarse_ckpt_model",
            checkpoints / "FinalCoarseNet.ckpt",
            "--fine_ckpt_model",
            checkpoints / "FinalFineNet.ckpt",
        ),
        "ONNX": ("--coarse_onnx", exports / "FinalCoarseNet.onnx", "--fine_onnx", exports / "FinalFineNet.onnx"),
    }
    training = ("--stage", "coarse", "--coarse_net", "paper", "--batch_size", 8, "--max_steps", 1, "--overwrite")
    commands = {
        "import mindspore": ([sys.executable, "-c", "import mindspore"], None),
        "train.py: command to the end of the first step": (
            python("train.py", "--data_url", data, "--train_url", folder / "started", *training),
            "step: 1 loss",
        ),
    }
    count = len(pictures)
    for runtime in RUNTIMES:
        for number, text in ((1, "command to the first picture"), (count, f"{count} pictures")):
            command = python("predict.py", "--input", *pictures[:number], "--overwrite", *nets[runtime])
            commands[f"predict.py, {runtime}: {text}"] = command, None
    for number in (count // 3, count):
        part = make_part(data, folder / f"test-{number}", number)
        commands[f"eval.py: {number} pictures"] = python("eval.py", "--test_data", part, *nets["MindSpore"]), None
    return commands


def time_commands(options, bar, folder, data):
    """Time whole commands, and compute the time of a further picture in them.

    Returns:
        A list of {"name", "median_s", "samples_s"}.
    """
    from src.data import listing

    pictures = [pair.rgb for pair in listing.list_test(data)][: 24 if options.quick else None]
    count = len(pictures)
    commands = commands_to_time(folder, data, pictures)
    samples = {label: [] for label in commands}
    for _ in range(options.rounds):
        for label, (command, until) in commands.items():
            samples[label].append(run_command(command, folder, until))
            bar.update()
    medians = {label: statistics.median(values) for label, values in samples.items()}
    for runtime in RUNTIMES:
        first_s, all_s = (
            medians[f"predict.py, {runtime}: {text}"] for text in ("command to the first picture", f"{count} pictures")
        )
        medians[f"predict.py, {runtime}: each further picture"] = (all_s - first_s) / (count - 1)
    third_s, all_s = (medians[f"eval.py: {number} pictures"] for number in (count // 3, count))
    medians["eval.py: each further picture"] = (all_s - third_s) / (count - count // 3)
    return [{"name": label, "median_s": value, "samples_s": samples.get(label, [])} for label, value in medians.items()]


def make_part(data, folder, count):
    """Make `folder` a NYU folder whose Test part is the first `count` test pairs of `data`. Returns `folder`."""
    from src.data import listing

    for pair in listing.list_test(data)[:count]:
        for path in (pair.rgb, pair.depth):
            target = folder / path.relative_to(data)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    (folder / "Train").symlink_to(data / "Train")
    return folder


def prepare(folder, data):
    """Write the nets in every format, and the test pictures as the C++ program reads them, into `folder`."""
    import mindspore as ms

    from src import net
    from src.nets import checkpoint

    ms.set_seed(0)
    coarse, fine = net.CoarseNet(), net.FineNet()
    fine.start_as_identity()
    (folder / "Ckpt").mkdir()
    for network in (coarse, fine):
        name = type(network).__name__
        parameters = {parameter.name: parameter for parameter in network.get_parameters()}
        checkpoint.save(folder / "Ckpt" / f"Final{name}.ckpt", parameters, {"net": name})
        np.savez(folder / f"{name}.npz", **{key: value.asnumpy() for key, value in parameters.items()})
        kind = name.removesuffix("Net").lower()
        files = "--ckpt_file", folder / "Ckpt" / f"Final{name}.ckpt", "--output_dir", folder
        run_command(python("export.py", "--coarse_or_fine", kind, *files, "--file_format", "MINDIR", "ONNX"), folder)
    run_command(python("preprocess.py", "--dataset_path", data, "--output_path", folder), folder)


def build_program():
    """Build the C++ program if it does not exist. Logs a warning if that fails."""
    if not PROGRAM.exists():
        built = subprocess.run(
            ["bash", ROOT / "ascend310_infer" / "build.sh"],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHON": sys.executable},
            check=False,
        )
        if built.returncode:
            logging.warning("without the C++ program: %s", (built.stderr or built.stdout).strip().splitlines()[-1])


def facts(options):
    """Return what the results depend on: the machine, the number of threads and rounds, and the versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "processors": cli.default_workers(),
        "threads": options.threads,
        "rounds": options.rounds,
        "python": platform.python_version(),
        "versions": {
            name: version(name)
            for name in ("mindspore", "torch", "onnxruntime", "openvino", "numpy", "opencv-python-headless")
        },
    }


def tables(results):
    """Return the results of `measure` as Markdown tables."""
    lines = ["Ratio: the best peer's time over this side's, above 1 is faster; ~ moved by over 15 % between rounds."]
    for part in results["compared"]:
        lines += [
            "",
            f"| {part['name']} | ms | 95th percentile | images/s | peak MB | ratio to {part['best_peer']} |",
            "|---|---|---|---|---|---|",
        ]
        for label, side in part["sides"].items():
            memory = f"{side['peak_mb']:.0f}" if side["peak_mb"] else ""
            lines.append(
                f"| {label} | {1000 * side['median_s']:.1f} | {1000 * side['p95_s']:.1f} "
                f"| {part['images'] / side['median_s']:.1f} | {memory} "
                f"| {side['ratio']:.2f}{' ~' if side['unsteady'] else ''} |"
            )
    for title, key, columns, row in (
        ("a whole process", "commands", "s", lambda result: f"{result['median_s']:.2f}"),
        (
            "growth of",
            "growth",
            "exponent | measured at",
            lambda result: f"{result['exponent']:.2f} | {', '.join(f'{x:g}: {y:.3g}' for x, y in result['points'])}",
        ),
        ("the floor", "floor", "", lambda result: result["value"]),
    ):
        if key in results:
            lines += ["", f"| {title} | {columns} |", "|---|" + "---|" * (1 + columns.count("|"))]
            lines += [f"| {result['name']} | {row(result)} |" for result in results[key]]
    if "layers" in results:
        lines += ["", "| operations of a picture | million multiplications and additions |", "|---|---|"]
        lines += [f"| {name} | {value / 1e6:.0f} |" for name, value in results["layers"].items()]
    if "loader" in results:
        lines += ["", results["loader"]]
    return "\n".join(lines) + "\n"


def chart(results, path):
    """Draw the ratios of all comparisons and save them as PNG: a row per comparison, a mark per side, and a line from
    its lowest to its highest ratio."""
    from matplotlib.figure import Figure

    parts = results["compared"]
    figure = Figure(figsize=(9, 0.42 * len(parts) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    for row, part in enumerate(parts):
        for label, side in part["sides"].items():
            is_ours = label in OURS
            axes.plot(
                side["ratio"],
                row,
                "o" if is_ours else "|",
                color=_COLOURS[label],
                markersize=9,
                markeredgewidth=1 if is_ours else 2.5,
                zorder=3 if is_ours else 2,
            )
            axes.plot(
                [min(side["ratios"]), max(side["ratios"])], [row, row], color=_COLOURS[label], linewidth=1, alpha=0.6
            )
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(parts)), [part["name"] for part in parts])
    axes.invert_yaxis()
    axes.set_xscale("log")
    ticks = [0.25, 0.5, 0.7, 1, 1.4, 2, 3]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("speed against the best peer of the same run; lines: slowest to fastest round", fontsize=9)
    axes.grid(axis="x", alpha=0.3)
    for label, colour in _COLOURS.items():
        axes.plot([], [], "o" if label in OURS else "|", color=colour, label=label, markeredgewidth=2.5)
    figure.legend(loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    visual.save_figure(figure, path)


_COLOURS = {
    LITE: "#d62728",
    "mindspore": "#ff7f0e",
    "onnxruntime": "#1f77b4",
    "openvino": "#17becf",
    "pytorch": "#2ca02c",
    "pytorch-channels-last": "#98df8a",
    "pytorch-compile": "#006d2c",
}


def parse_args(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("training", "inference", "commands", "loader", "growth", "floor")
    parser.add_argument("--data", type=Path, help="a NYU folder (default: rooms that are rendered here)")
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("benchmark_Result"),
        help="benchmarks.json, benchmarks.md and benchmarks.png go into it",
    )
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--quick", action="store_true", help="fewer sides, batches, rounds and pictures")
    parser.add_argument("--threads", type=cli.positive_int, default=cli.default_workers())
    options = parser.parse_args(arguments)
    options.rounds, options.seconds = (2, 1.0) if options.quick else (3, 2.0)
    options.batches = (8,) if options.quick else (1, 8, 16)
    return options


def measure(options, folder, keep):
    """Measure the parts that the options choose.

    Args:
        options: of the command.
        folder: an empty folder for files.
        keep: called with the results so far after each comparison and part.

    Returns:
        The results by name of the part.
    """
    data = options.data.resolve() if options.data else folder / "NYU"
    if not options.data:
        from tools import make_sample_nyu

        make_sample_nyu.make(data, scenes=4, pairs_per_scene=40, test_pairs=12 if options.quick else 60, seed=1)
    elif not data.is_dir():
        raise UserError(f"--data {options.data}: no such folder; expected NYU's")
    parts, results = options.parts, {"facts": facts(options), "compared": []}
    if {"inference", "commands"} & set(parts):
        build_program()
        prepare(folder, data)
    with cli.progress(None, "benchmarks", "run") as bar:
        for name, compared in (
            ("inference", lambda: inference(options, bar, folder)),
            ("training", lambda: training(options, bar)),
        ):
            for comparison in compared() if name in parts else ():
                results["compared"].append(comparison)
                keep(results)
        if "commands" in parts:
            results["commands"] = time_commands(options, bar, folder, data)
            keep(results)
        if "growth" in parts:
            results["growth"] = growth.measure(folder)
        if "floor" in parts:
            results["floor"], results["layers"] = growth.floor()
        if "loader" in parts:
            keep(results)
            results["loader"] = loader.compare(
                data, rounds=options.rounds, pairs=500 if options.quick else 2000, workers=options.threads
            )
    keep(results)
    return results


def main():
    options = parse_args()
    output = writable_folder(options.output_dir)
    started_at = time.perf_counter()

    def keep(results):
        results["facts"]["minutes"] = (time.perf_counter() - started_at) / 60
        write_text(output / "benchmarks.json", json.dumps(results, indent=1) + "\n")
        write_text(output / "benchmarks.md", tables(results))
        if results["compared"]:
            chart(results, output / "benchmarks.png")

    with tempfile.TemporaryDirectory(prefix="depthnet-") as folder:
        results = measure(options, Path(folder), keep)
    sys.stdout.write(tables(results))
    logging.info("%.1f minutes; figures and chart in %s", results["facts"]["minutes"], output)
    return 0


if __name__ == "__main__":
    cli.run(main)
