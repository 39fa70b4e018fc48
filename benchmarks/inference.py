"""Time an image through both nets: the C++ program on MindSpore Lite beside onnxruntime and MindSpore in Python."""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src import cli
from src.errors import UserError

PROGRAM = Path(__file__).resolve().parent.parent / "ascend310_infer" / "build" / "depthnet_infer"


def lite(model, images, threads):
    """Median milliseconds an image, as the C++ program reports it."""
    if not PROGRAM.exists():
        raise UserError(f"{PROGRAM}: not built yet: bash ascend310_infer/build.sh")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([PROGRAM, "--coarse_mindir", model / "MindIR" / "FinalCoarseNet.mindir", "--fine_mindir",
                        model / "MindIR" / "FinalFineNet.mindir", "--dataset_path", images, "--device_type", "CPU",
                        "--threads", str(threads)], cwd=folder, check=True, capture_output=True)
        report = (Path(folder) / "time_Result" / "test_perform_static.txt").read_text()
    return float(report.split("median: ")[1].split(" ms")[0])


def onnx(model, images, threads):
    """Median milliseconds an image in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    coarse, fine = (onnxruntime.InferenceSession(str(model / "ONNX" / f"Final{name}Net.onnx"), options,
                                                 providers=["CPUExecutionProvider"]) for name in ("Coarse", "Fine"))

    def run(rgb):
        coarse_log_depth = coarse.run(None, {"rgb": rgb})[0]
        return fine.run(None, {"rgb": rgb, "coarse_log_depth": coarse_log_depth})[0]

    return timed(run, images)


def mindspore(model, images, _):
    """Median milliseconds an image in MindSpore, from the checkpoints."""
    from src import checkpoint, device, stages

    device.select("CPU")
    names = (model / "Ckpt" / "FinalCoarseNet.ckpt", model / "Ckpt" / "FinalFineNet.ckpt")
    return timed(stages.predictors(checkpoint.load_coarse(names[0]), checkpoint.load_fine(names[1])), images)


def timed(run, images):
    milliseconds = []
    for path in sorted(images.glob("*.bin")):
        rgb = np.fromfile(path, np.float32).reshape(1, 3, 228, 304)
        began = time.perf_counter()
        run(rgb)
        milliseconds.append(1000 * (time.perf_counter() - began))
    return float(np.median(milliseconds[1:]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("model", type=Path, help="a folder with Ckpt/, MindIR/ and ONNX/")
    parser.add_argument("images", type=Path, help="the img_data folder of preprocess.py")
    parser.add_argument("--threads", type=cli.positive_int, default=2)
    parser.add_argument("--rounds", type=cli.positive_int, default=3)
    options = parser.parse_args()
    options.model, options.images = options.model.resolve(), options.images.resolve()  # the program runs elsewhere
    runtimes = {"C++ program, MindSpore Lite": lite, "onnxruntime": onnx, "MindSpore in Python": mindspore}
    times = {name: [] for name in runtimes}
    for _ in range(options.rounds):
        for name, run in runtimes.items():
            times[name].append(run(options.model, options.images, options.threads))
    medians = {name: float(np.median(values)) for name, values in times.items()}
    first = next(iter(medians.values()))
    sys.stdout.write("| runtime | ms an image | ratio |\n|---|---|---|\n")
    for name, value in medians.items():
        sys.stdout.write(f"| {name} | {value:.0f} | {value / first:.2f} |\n")
    return 0


if __name__ == "__main__":
    cli.run(main)
