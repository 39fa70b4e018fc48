"""Runs the repo's programs, each in a fork of this process, which has loaded what they import: a program starts at
once, and its crash is an exit code.

Reads lines of JSON {"target", "arguments", "cwd", "environment", "megabytes", "killed_at"} and answers each with
{"code", "output", "errors"}. A program is its file below the repo; the other targets are the functions below. MindSpore
starts no thread before a fork, for nothing here runs a net.
"""

import ctypes
import gc
import itertools
import json
import os
import resource
import runpy
import signal
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cv2  # noqa: E402
import matplotlib.backends.backend_agg  # noqa: E402
import matplotlib.figure  # noqa: E402, F401
import numpy as np  # noqa: E402

import train  # noqa: E402
from src.base import cli  # noqa: E402
from src.base.stopping import StopRequest  # noqa: E402
from src.data import image, packed  # noqa: E402
from src.data.sampling import Schedule  # noqa: E402
from src.data_loader import TrainingData  # noqa: E402
from src.net import COARSE_NETS  # noqa: E402
from src.nets import checkpoint  # noqa: E402
from src.prediction import depth_files  # noqa: E402
from src.prediction.job import check_outputs, find_jobs  # noqa: E402
from src.prediction.predict import DepthPredictor  # noqa: E402
from src.scoring import report  # noqa: E402, F401
from src.training import build, stages  # noqa: E402, F401
from tests.tiny import TinyCoarse  # noqa: E402

SECONDS = 60  # of a processor, for what has a limit of memory
DEADLINE = 900


def red(rgb):
    """A coarse net: the redder, the farther."""
    return np.stack([image.resize(one[0], image.DEPTH_SIZE) for one in rgb])[:, None]


def predict(folder, out):
    """predict.py's work on the pictures of a folder, with a net that is quick."""
    jobs, _ = find_jobs([folder], Path(out))
    kinds = ("color", "npy")
    check_outputs(jobs, kinds, overwrite=False)
    predictor = DepthPredictor(red, lambda rgb, coarse_log_depth: coarse_log_depth)
    writer = depth_files.Writer(kinds, "viridis", 10.0, None)
    with cli.progress(len(jobs), "predicting", "file") as bar:
        return 1 if depth_files.predict_all(jobs, predictor, writer, 8, bar) else 0


def load_checkpoint(path):
    """What every command does with a checkpoint before it goes into a net."""
    checkpoint.load(path)
    return 0


def read_packed(folder):
    """An epoch of a packed set."""
    source = packed.open_training(folder)
    if len(source.names) >= 2:
        list(TrainingData(source, Schedule(len(source.names), 2, 0), 2).batches(0, len(source.names) // 2))
    return 0


def load_rgb(path):
    """What every command does with a picture first."""
    sys.stdout.write(f"{image.load_rgb(path).shape}\n")
    return 0


def train_tiny(*arguments):
    """train.py with nets of one convolution: all that it does beside the nets, in a second."""
    COARSE_NETS["default"], build.FineNet = TinyCoarse, TinyFine
    return train.main(StopRequest())


class TinyFine(TinyCoarse):
    def construct(self, rgb, coarse_log_depth):
        return self.conv(rgb) + coarse_log_depth


FUNCTIONS = {
    "predict": predict,
    "load_rgb": load_rgb,
    "load_checkpoint": load_checkpoint,
    "read_packed": read_packed,
    "train_tiny": train_tiny,
}


def kill_at(number):
    """End this process, as SIGKILL would, in place of its operation of this number (from 1) on files and folders."""
    operations = itertools.count(1)

    def counted(operation):
        def run(*arguments, **named):
            if next(operations) == number:
                os._exit(137)
            return operation(*arguments, **named)

        return run

    for name in ("rename", "replace", "unlink", "mkdir", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))


def become(request, output, errors):
    """Become the program: never returns."""
    os.chdir(request["cwd"])
    os.environ.update(request["environment"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(errors, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8") for number in (1, 2))
    signal.alarm(DEADLINE)
    if megabytes := request["megabytes"]:
        base = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        limit = base + (megabytes << 20)
        ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX: threads in each other's way would take 64 MB of it each
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        cv2.setNumThreads(0)
    if request["killed_at"]:
        kill_at(request["killed_at"])
    target, arguments = request["target"], request["arguments"]
    sys.argv = [str(ROOT / target), *arguments]
    code = 1
    try:
        if target in FUNCTIONS:
            cli.run(lambda: FUNCTIONS[target](*arguments))
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream:
                stream.flush()
        os._exit(code)


def main():
    gc.freeze()  # a fork's collector writes to what it looks at: the pages would be copied
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            pid = os.fork()
            if pid == 0:
                become(request, output.fileno(), errors.fileno())
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            texts = []
            for file in (output, errors):
                file.seek(0)
                texts.append(file.read().decode("utf-8", "backslashreplace"))
        sys.__stdout__.write(json.dumps({"code": code, "output": texts[0], "errors": texts[1]}) + "\n")
        sys.__stdout__.flush()


if __name__ == "__main__":
    main()
