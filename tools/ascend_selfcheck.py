"""Check this host's Ascend in a few minutes and write a report as a text file: installed software, each operator call
and the first training steps against the CPU, signals, agreement between devices, the MindIR and the C++ program."""

import argparse
import contextlib
import ctypes
import glob
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from src.base import cli
from src.base.arrays import Array
from src.base.errors import CheckFailed, UserError
from src.base.files import replacing

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent
CALLS, NETS, STORED = TOOLS / "selfcheck_calls.py", TOOLS / "selfcheck_nets.py", TOOLS / "selfcheck"
LISTED = json.loads((STORED / "calls.json").read_text())
RIGHT, WRONG, NOT_RUN, NOT_COMPUTED = "right", "WRONG", "not run", "not computed"
ATTEMPTS = 5  # to run all operator calls: one that ends their program must not hide the others

# Tolerances, relative to the largest value. An Ascend multiplies float32 matrices as HF32, with 10 bits of fraction.
PRODUCTS = "Conv2D", "MatMul", "BiasAdd"
PRODUCT, FLOAT16, FLOAT32 = 5e-3, 5e-3, 1e-4  # of an operator call
STEPS = {"O0": 5e-3, "O2": 3e-2}  # of a loss, at each precision
OUTPUT = 3e-2  # of the C++ program on Ascend, where convolutions are float16 or HF32


class NotRun(Exception):
    """A check does not apply to this host. The message says why."""


class Check(NamedTuple):
    """A row of the table at the end."""

    name: str
    state: str
    remark: str


class Host:
    """The host that is checked, and the report file."""

    def __init__(self, options: argparse.Namespace, report: Any, folder: Path) -> None:
        self.target, self.device_id, self.jit_level = options.device_target, options.device_id, options.jit_level
        self.limit, self.report, self.folder = options.limit, report, folder
        self.emulated = self.target == "Ascend" and _is_emulated()
        # MindSpore's own collectives work on CPU.
        self.devices = _count_devices(self) if self.target == "Ascend" else 2 if self.target == "CPU" else 0

    def run(self, *command: object, **variables: str) -> str:
        """Run a command, append its output to the report, and return it. Raises CheckFailed for an exit code other than
        0 or a timeout."""
        self.say("$ " + " ".join(map(str, command)))
        with subprocess.Popen(
            list(map(str, command)),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            text=True,
            stderr=subprocess.STDOUT,
            env={**os.environ, **variables},
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=self.limit)
            except BaseException as error:  # Ctrl-C, too
                os.killpg(process.pid, signal.SIGKILL)  # with all that it has started
                self.say(process.communicate()[0])
                if isinstance(error, subprocess.TimeoutExpired):
                    raise CheckFailed(f"not done in {self.limit} s") from error
                raise
        self.say(output)
        if process.returncode:
            raise CheckFailed(f"exit code {process.returncode}: {(output.strip().splitlines() or [''])[-1][:200]}")
        return output

    def python(self, program: object, *arguments: object) -> str:
        """Run a Python program as `run` does."""
        return self.run(sys.executable, program, *arguments)

    def say(self, text: str) -> None:
        """Append to the report."""
        self.report.write(text.rstrip() + "\n")
        self.report.flush()


def _is_emulated() -> bool:
    """Return whether CANN is the emulator of tests/ascend, which computes nothing."""
    try:
        return hasattr(ctypes.CDLL("libascendcl.so"), "emulator_operators")
    except OSError:
        return False


def _count_devices(host: Host) -> int:
    count = "import mindspore as ms; print('devices', ms.device_context.ascend.device_count(), flush=True)"
    try:
        printed = host.run(sys.executable, "-c", count).splitlines()
    except CheckFailed:
        return 0
    return int(next((line.split()[1] for line in printed if line.startswith("devices ")), 0))


def check_environment(host: Host) -> str:
    """Record versions, driver, CANN's packages, permissions of the devices, cores and environment variables."""
    packages = {}
    for package in ("mindspore", "numpy", "te", "hccl", "opencv-python", "opencv-python-headless"):
        packages[package] = "absent"
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[package] = importlib.metadata.version(package)
    told = ("ASCEND", "MS_", "HCCL", "RANK", "DEVICE", "GLOG", "LD_LIBRARY", "LITE_", "PYTHONPATH", "OMP_", "EMULATED")
    found = {
        "machine": platform.platform(),
        "python": sys.version,
        "packages": packages,
        "cores": len(os.sched_getaffinity(0)),
        "devices": {
            path: "readable and writable" if os.access(path, os.R_OK | os.W_OK) else "NOT readable and writable"
            for pattern in ("davinci*", "devmm_svm", "hisi_hdc")
            for path in sorted(glob.glob(f"/dev/{pattern}"))
        },
        "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith(told)},
    }
    host.say(json.dumps(found, indent=1))
    home = os.environ.get("ASCEND_HOME_PATH", "/nowhere")
    for pattern in ("/usr/local/Ascend/driver", "/usr/local/Ascend/*/latest/*", f"{home}/*"):
        for path in sorted(glob.glob(f"{pattern}/version.info")):
            host.say(f"{path}:\n{Path(path).read_text(errors='replace')}")
    if shutil.which("npu-smi"):
        host.run("npu-smi", "info")
    return f"MindSpore {packages['mindspore']}, {host.devices} devices"


def check_calls(host: Host, in_float16: bool) -> str:
    """Compare each operator call of the nets' training steps, alone, with the CPU in float32."""
    expected, computed = outputs_of_calls(host, "CPU", "--in_float32"), outputs_of_calls(host, host.target)
    errors = {
        json.dumps(call): _error(computed.get(number), expected.get(number))
        for number, call in enumerate(LISTED)
        if ("float16" in json.dumps(call)) == in_float16
    }
    wrong = []
    for call, error in errors.items():
        tolerance = FLOAT16 if in_float16 else PRODUCT if call[2:].startswith(PRODUCTS) else FLOAT32
        told = error if isinstance(error, str) else f"{error:.1e}"
        if isinstance(error, str) or not (error <= tolerance or host.emulated):
            wrong.append(f"{told}, {call[:100]}")
            told += "  WRONG"
        host.say(f"{told}  {call[:300]}")
    if wrong:
        raise CheckFailed(f"{len(wrong)} of {len(errors)} calls, the first: {wrong[0]}")
    return f"{len(errors)} calls; the largest error is {max(errors.values()):.1e}"


def outputs_of_calls(host: Host, target: str, *arguments: str) -> dict[int, dict[str, Array]]:
    """Return the outputs of each call by its number, or the "error" that it raises. They are cached."""
    folder = host.folder / f"calls_{'_'.join([target, *arguments])}"
    if not folder.exists():
        folder.mkdir()
        for _ in range(ATTEMPTS):
            try:
                host.python(CALLS, "run", target, host.device_id, *arguments, folder)
                break
            except CheckFailed as error:
                if isinstance(error.__cause__, subprocess.TimeoutExpired):
                    continue
                number = len(list(folder.glob("[0-9]*.npz")))  # the call that has ended the program
                np.savez(folder / f"{number}.npz", error=np.array(str(error)))
    return {int(path.stem): dict(np.load(path)) for path in folder.glob("[0-9]*.npz")}


def _error(computed: dict[str, Array] | None, expected: dict[str, Array] | None) -> float | str:
    """Return the largest difference relative to the largest value, or why there is none."""
    if computed is None or expected is None:
        return f"not run: their program was started {ATTEMPTS} times"
    for outputs, where in ((expected, "on CPU: "), (computed, "")):
        if "error" in outputs:
            return f"{where}{outputs['error']}"
    return float(np.max([_difference(computed[name], array) for name, array in expected.items()]))


def _difference(computed: Array, expected: Array) -> float:
    computed, expected = computed.astype(np.float64), expected.astype(np.float64)
    return float(np.abs(computed - expected).max(initial=0) / (np.abs(expected).max(initial=0) or 1))


def check_steps(host: Host, net: str, level: str) -> str:
    """Compare the losses of the first steps with the CPU's stored ones in fp32. In mixed precision compare only the
    first loss: the others depend on which updates overflow while the loss scale adapts."""
    host.python(NETS, net, host.target, host.device_id, level, host.folder, "--jit_level", host.jit_level)
    computed = dict(np.load(host.folder / f"{net}_{level}.npz"))
    expected = np.array(json.loads((STORED / "losses.json").read_text())[net])
    launch, wait = computed["seconds"][1:].mean(axis=0)
    host.say(f"losses {computed['losses']}, CPU {expected}; loss scale {computed['scale']}")
    count = len(expected) if level == "O0" else 1
    seconds = f"{launch + wait:.3f} s a step: {launch:.3f} in launch, {wait:.3f} in wait"
    return _within(host, _difference(computed["losses"][:count], expected[:count]), STEPS[level], seconds)


def _within(host: Host, error: float, tolerance: float, remark: str) -> str:
    remark = f"{error:.1e} from the CPU; {remark}"
    if not error <= tolerance and not host.emulated:
        raise CheckFailed(f"{remark}; expected at most {tolerance:.0e}")
    return remark


def check_signal(host: Host) -> str:
    """Send SIGTERM to a training after its tenth step. It must save, exit with 143, and be resumable."""
    data, log = host.folder / "NYU", host.folder / "train.log"
    host.python(TOOLS / "make_sample_nyu.py", data, *["--scenes", "1", "--pairs_per_scene", "4", "--test_pairs", "1"])
    device = f"--device_target {host.target} --device_id {host.device_id} --jit_level {host.jit_level}"
    options = f"--batch_size 1 --stage coarse --epochs_coarse 1000 {device}"
    train = [str(ROOT / "train.py"), "--data_url", str(data), *options.split()]
    with (
        open(log, "w") as file,
        subprocess.Popen(
            [sys.executable, *train], cwd=host.folder, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        ) as process,
    ):
        try:
            end = time.monotonic() + host.limit
            while "step: 10 " not in log.read_text() and process.poll() is None and time.monotonic() < end:
                time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
            process.wait(host.limit)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise CheckFailed(f"did not stop in {host.limit} s") from error
            raise
        finally:
            host.say(log.read_text())
    saved = [int(path.stem.split("_")[1]) for path in host.folder.glob("Model/Ckpt/CoarseNet_*.ckpt")]
    if process.returncode != 143 or not saved or "the state is saved" not in log.read_text():
        raise CheckFailed(f"exit code {process.returncode}, expected 143; saved steps: {saved}")
    step = max(saved)
    host.python(*train, "--max_steps", step + 1, "--resume")
    return f"saved at step {step}, and resumed"


def check_ranks(host: Host) -> str:
    """Train on two devices. Their weights must agree, and an overflow on one must skip the update on both."""
    if host.devices < 2:
        raise NotRun(f"{host.devices} devices, two are needed")
    launcher = ["--worker_num=2", "--local_worker_num=2", "--join=True", "--log_dir=msrun", "--master_port=18471"]
    program = [NETS, "ranks", host.target, host.device_id, "O2", host.folder, "--jit_level", host.jit_level]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    host.run("msrun", *launcher, *program, PATH=path)
    both = [dict(np.load(host.folder / f"rank{rank}.npz")) for rank in (0, 1)]
    host.say(f"applied: {both[0]['applied']} and {both[1]['applied']}")
    right = all(list(rank["applied"]) == [1, 1, 0, 1, 1] for rank in both) and both[0]["digest"] == both[1]["digest"]
    if not right and not host.emulated:
        raise CheckFailed("the weights differ, or the overflow was not seen by both")
    return "the same weights; the overflow on one was skipped by both"


def check_export(host: Host) -> str:
    """Export this repo's FineNet to MindIR; export.py compares it with the net."""
    weights = ROOT / "weights" / "FineNet.ckpt"
    options = ["--coarse_or_fine", "fine", "--ckpt_file", weights, "--output_dir", host.folder]
    output = host.python(ROOT / "export.py", *options, "--device_target", host.target, "--device_id", host.device_id)
    return next(line.split(", ")[-1] for line in output.splitlines() if "verified to" in line)


def check_program(host: Host, precision: str) -> str:
    """Compare the C++ program's output with the stored one, on the MindIR of nets with fixed weights."""
    on_cpu = host.target == "CPU"
    if not on_cpu and not os.environ.get("MS_LITE_HOME", os.environ.get("LITE_HOME")):
        raise NotRun("MS_LITE_HOME is not set to a MindSpore Lite for Ascend (docs/inference.md)")
    build, nets, results = (host.folder / name for name in ("build", "nets", f"results_{precision}"))
    device = "CPU" if on_cpu else "Ascend"
    try:
        host.run("bash", ROOT / "ascend310_infer" / "build.sh", BUILD_DIR=str(build), DEVICE_TARGET=device)
    except CheckFailed as error:
        if not on_cpu:
            raise
        raise NotRun(f"it cannot be built here: {error}") from error  # without a compiler, or MindSpore Lite's wheel
    if not nets.exists():
        nets.mkdir()
        host.python(NETS, "export", "CPU", 0, "O0", nets)
    models = [f"--{net.lower()}_mindir={nets}/MindIR/Final{net}Net.mindir" for net in ("Coarse", "Fine")]
    folders = [f"--dataset_path={nets}/images", f"--result_path={results}", f"--time_path={results}_time"]
    choice = f"--device_type {device} --device_id {host.device_id} --precision {precision}".split()
    host.run(build / "depthnet_infer", *models, *folders, *choice)
    expected = np.load(STORED / "output.npy")
    computed = np.fromfile(results / "0_0.bin", np.float32).reshape(expected.shape)
    tolerance = FLOAT32 if on_cpu and precision == "fp32" else OUTPUT
    return _within(host, _difference(computed, expected), tolerance, f"{expected.size} values")


def checks(host: Host) -> list[tuple[str, bool, Callable[[], str]]]:
    """Return (name, whether it is of computed values, function) of each check."""
    return [
        ("environment", False, partial(check_environment, host)),
        ("operator calls, float32", True, partial(check_calls, host, False)),
        ("operator calls, float16", True, partial(check_calls, host, True)),
        *(
            (f"five steps of the {net} net, {level}", True, partial(check_steps, host, net, level))
            for level in STEPS
            for net in ("coarse", "paper", "fine")
        ),
        ("SIGTERM", False, partial(check_signal, host)),
        ("two devices", True, partial(check_ranks, host)),
        ("MindIR", True, partial(check_export, host)),
        ("C++ program, fp32", True, partial(check_program, host, "fp32")),
        ("C++ program, fp16", True, partial(check_program, host, "fp16")),
    ]


def run_check(host: Host, name: str, computes: bool, check: Callable[[], str]) -> Check:
    """Run a check and return its row of the table. An error in it does not stop the next checks."""
    host.say(f"\n=== {name}")
    try:
        if host.target == "Ascend310" and name != "environment" and not name.startswith("C++"):
            raise NotRun("an Ascend 310 does not train")
        remark = check()
    except NotRun as reason:
        return Check(name, NOT_RUN, str(reason))
    except Exception as error:  # a crash must not hide the other checks
        return Check(name, WRONG, f"{type(error).__name__}: {error}")
    return Check(name, NOT_COMPUTED if computes and host.emulated else RIGHT, remark)


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    add = parser.add_argument
    add("--device_target", choices=("Ascend", "Ascend310", "CPU"), default="Ascend", help="Ascend310: 310P, too")
    add("--device_id", type=cli.non_negative_int, default=0)
    add("--jit_level", choices=("auto", "O0", "O1", "O2"), default="auto", help="of the trainings, as train.py's")
    add("--limit", type=cli.positive_int, default=300, help="time limit of each program in seconds")
    add("--output", type=Path, default=Path("ascend_selfcheck.txt"), help="the file to send")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse_args()
    if options.output.is_dir():
        raise UserError(f"{options.output} is a folder; expected a file to write")
    with tempfile.TemporaryDirectory() as folder, replacing(options.output) as report:
        host = Host(options, report, Path(folder))
        rows = []
        for name, computes, check in checks(host):
            rows.append(run_check(host, name, computes, check))
            logging.info("%-12s %s: %s", rows[-1].state, name, rows[-1].remark)
        host.say("\n" + "\n".join(f"{row.state:12} {row.name}: {row.remark}" for row in rows))
    logging.info(
        "all that was printed is in %s: it names this machine's folders; read it before you send it", options.output
    )
    return 1 if any(row.state == WRONG for row in rows) else 0


if __name__ == "__main__":
    cli.run(main)
