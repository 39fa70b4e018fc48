"""Check this host's Ascend in a few minutes and write a report as a text file: installed software, layers and first
training steps compared with the CPU, signals, agreement between devices, and the exported MindIR."""

import argparse
import ctypes
import glob
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from src.base import cli
from src.base.arrays import Array
from src.base.errors import CheckFailed, UserError
from src.base.files import replacing

ROOT = Path(__file__).resolve().parent.parent
NETS = Path(__file__).with_name("selfcheck_nets.py")
RIGHT, WRONG, NOT_RUN, NOT_COMPUTED = "right", "WRONG", "not run", "not computed"

# Tolerance of the device against the CPU in fp32, relative to the largest value. Ascend's convolutions are HF32 at O0
# (10 bits of fraction), fp16 at O2; errors add up over thousands of products and five steps.
TOLERANCES = {"O0": 5e-3, "O2": 3e-2}


class NotRun(Exception):
    """A check does not apply to this host. The message says why."""


class Check(NamedTuple):
    """A row of the table at the end."""

    name: str
    state: str
    remark: str


class Host:
    """The host that is checked, and the report file."""

    def __init__(self, target: str, device_id: int, limit: int, report: Any, folder: Path) -> None:
        self.target, self.device_id, self.limit, self.report, self.folder = target, device_id, limit, report, folder
        self.emulated = target != "CPU" and _is_emulated()
        self.devices = _count_devices(self) if target != "CPU" else 2  # MindSpore's own collectives work on CPU

    def run(self, *command: object, okay: Sequence[int] = (0,), **variables: str) -> str:
        """Run a command, append its output to the report, and return it. Raises CheckFailed for another exit code or a
        timeout."""
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
        if process.returncode not in okay:
            raise CheckFailed(f"exit code {process.returncode}: {(output.strip().splitlines() or [''])[-1][:200]}")
        return output

    def compute(self, what: str, target: str, level: str) -> dict[str, Array]:
        """Return the arrays that tools/selfcheck_nets.py computes. They are cached."""
        path = self.folder / f"{what}_{target}_{level}.npz"
        if not path.exists():
            self.run(sys.executable, NETS, what, target, self.device_id, level, self.folder)
        with np.load(path) as arrays:
            return dict(arrays)

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
    try:
        count = "import mindspore as ms; print(ms.device_context.ascend.device_count())"
        return int(host.run(sys.executable, "-c", count).strip().splitlines()[-1])
    except (CheckFailed, ValueError):
        return 0


def check_environment(host: Host) -> str:
    """Record versions, driver, CANN's packages, permissions of the devices, cores and environment variables."""
    packages = {}
    for package in ("mindspore", "numpy", "te", "hccl", "opencv-python", "opencv-python-headless"):
        try:
            packages[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            packages[package] = "absent"
    variables = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(
            ("ASCEND", "MS_", "HCCL", "RANK", "DEVICE", "GLOG", "LD_LIBRARY", "PYTHONPATH", "OMP_", "TE_", "EMULATED")
        )
    }
    davinci = {
        path: "readable and writable" if os.access(path, os.R_OK | os.W_OK) else "NOT readable and writable"
        for pattern in ("davinci*", "devmm_svm", "hisi_hdc")
        for path in sorted(glob.glob(f"/dev/{pattern}"))
    }
    host.say(
        json.dumps(
            {
                "machine": platform.platform(),
                "python": sys.version,
                "packages": packages,
                "cores": len(os.sched_getaffinity(0)),
                "devices": davinci,
                "variables": variables,
            },
            indent=1,
        )
    )
    for pattern in (
        "/usr/local/Ascend/driver/version.info",
        "/usr/local/Ascend/*/latest/*/version.info",
        f"{os.environ.get('ASCEND_HOME_PATH', '/nowhere')}/*/version.info",
    ):
        for path in sorted(glob.glob(pattern)):
            host.say(f"{path}:\n{Path(path).read_text(errors='replace')}")
    if shutil.which("npu-smi"):
        host.run("npu-smi", "info")
    return f"MindSpore {packages['mindspore']}, {host.devices} devices"


def check_layers(host: Host, level: str) -> str:
    """Compare each distinct layer of the nets and its gradients with the CPU in fp32."""
    expected, computed = host.compute("layers", "CPU", "O0"), host.compute("layers", host.target, level)
    errors = {
        name: float(np.abs(computed[name] - array).max() / np.abs(array).max()) for name, array in expected.items()
    }
    for name, error in errors.items():
        host.say(f"{error:9.1e}  {name}")
    worst = max(errors, key=lambda name: np.nan_to_num(errors[name], nan=np.inf))
    return _within(host, errors[worst], level, f"{len(errors)} arrays; the worst is {worst}")


def check_steps(host: Host, net: str, level: str) -> str:
    """Compare the losses of the first steps with the CPU in fp32. In mixed precision compare only the first loss: the
    others depend on which updates overflow while the loss scale adapts."""
    expected, computed = host.compute(net, "CPU", "O0"), host.compute(net, host.target, level)
    launch, wait = computed["seconds"][1:].mean(axis=0)
    host.say(f"losses {computed['losses']}, CPU {expected['losses']}; loss scale {computed['scale']}")
    compared = slice(None) if level == "O0" else slice(1)
    error = float(np.abs(computed["losses"] / expected["losses"] - 1)[compared].max())
    return _within(host, error, level, f"{launch + wait:.3f} s a step: {launch:.3f} in launch, {wait:.3f} in wait")


def _within(host: Host, error: float, level: str, remark: str) -> str:
    remark = f"{error:.1e} from the CPU; {remark}"
    if not error <= TOLERANCES[level] and not host.emulated:
        raise CheckFailed(f"{remark}; expected at most {TOLERANCES[level]:.0e}")
    return remark


def check_signal(host: Host) -> str:
    """Send SIGTERM to a training. It must save, exit with 143, and be resumable."""
    data = host.folder / "NYU"
    host.run(
        sys.executable,
        ROOT / "tools" / "make_sample_nyu.py",
        data,
        "--scenes",
        1,
        "--pairs_per_scene",
        4,
        "--test_pairs",
        1,
    )
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "--data_url",
        str(data),
        "--batch_size",
        "1",
        "--stage",
        "coarse",
        "--device_target",
        host.target,
        "--device_id",
        str(host.device_id),
    ]
    log = host.folder / "train.log"
    with (
        open(log, "w") as file,
        subprocess.Popen(
            [*command, "--epochs_coarse", "1000"], cwd=host.folder, stdout=file, stderr=subprocess.STDOUT
        ) as process,
    ):
        begun = time.monotonic()
        while "step: 1 " not in log.read_text() and process.poll() is None and time.monotonic() < begun + host.limit:
            time.sleep(0.2)
        time.sleep(1)  # some more steps
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(host.limit)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise CheckFailed(f"did not stop in {host.limit} s") from error
    host.say(log.read_text())
    states = list(host.folder.glob("Model/Ckpt/CoarseNet_*.ckpt"))
    if process.returncode != 143 or len(states) != 1:
        raise CheckFailed(f"exit code {process.returncode}, expected 143; saved states: {len(states)}, expected 1")
    step = int(states[0].stem.split("_")[1])
    host.run(*command, "--epochs_coarse", 1000, "--max_steps", step + 1, "--resume")
    return f"saved at step {step}, and resumed"


def check_ranks(host: Host) -> str:
    """Train on two devices. Their weights must agree, and an overflow on one must skip the update on both."""
    if host.devices < 2:
        raise NotRun(f"{host.devices} devices, two are needed")
    host.run(
        "msrun",
        "--worker_num=2",
        "--local_worker_num=2",
        "--join=True",
        "--log_dir=msrun",
        "--master_port=18471",
        NETS,
        "ranks",
        host.target,
        host.device_id,
        "O2",
        host.folder,
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    )
    first, second = (dict(np.load(host.folder / f"rank{rank}.npz")) for rank in (0, 1))
    host.say(f"applied: {first['applied']} and {second['applied']}")
    if not host.emulated and (
        first["digest"] != second["digest"]
        or list(first["applied"]) != [1, 1, 0, 1, 1]
        or list(second["applied"]) != [1, 1, 0, 1, 1]
    ):
        raise CheckFailed("the weights differ, or the overflow was not seen by both")
    return "the same weights; the overflow on one was skipped by both"


def check_export(host: Host) -> str:
    """Export this repo's FineNet to MindIR; export.py compares it with the net."""
    weights = ROOT / "weights" / "FineNet.ckpt"
    if not weights.exists():
        raise NotRun(f"no {weights}")
    output = host.run(
        sys.executable,
        ROOT / "export.py",
        "--coarse_or_fine",
        "fine",
        "--ckpt_file",
        weights,
        "--output_dir",
        host.folder,
    )
    return output.strip().splitlines()[-1].split(", ")[-1]


def check_310(host: Host) -> str:
    """Run the C++ program on an Ascend 310."""
    raise NotRun("not part of this check yet: see docs/inference.md")


def checks(host: Host) -> list[tuple[str, Callable[[], str]]]:
    """Return (name, function) of each check."""
    listed: list[tuple[str, Callable[[], str]]] = [("environment", lambda: check_environment(host))]
    for level in TOLERANCES:
        listed += [(f"layers, {level}", lambda level=level: check_layers(host, level))]  # type: ignore[misc]
        listed += [
            (f"five steps of the {net} net, {level}", lambda net=net, level=level: check_steps(host, net, level))  # type: ignore[misc]
            for net in ("coarse", "paper", "fine")
        ]
    return [
        *listed,
        ("SIGTERM", lambda: check_signal(host)),
        ("two devices", lambda: check_ranks(host)),
        ("MindIR", lambda: check_export(host)),
        ("C++ program on 310", lambda: check_310(host)),
    ]


def run_check(host: Host, name: str, check: Callable[[], str]) -> Check:
    """Run a check and return its row of the table. An error in it does not stop the next checks."""
    host.say(f"\n=== {name}")
    try:
        remark = check()
    except NotRun as reason:
        return Check(name, NOT_RUN, str(reason))
    except Exception as error:  # a crash must not hide the other checks
        return Check(name, WRONG, f"{type(error).__name__}: {error}")
    compared = host.emulated and ("layers" in name or "steps" in name or "devices" in name)
    return Check(name, NOT_COMPUTED if compared else RIGHT, remark)


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    add = parser.add_argument
    add("--device_target", choices=("Ascend", "CPU"), default="Ascend")
    add("--device_id", type=cli.non_negative_int, default=0)
    add("--limit", type=cli.positive_int, default=300, help="time limit of each program in seconds")
    add("--output", type=Path, default=Path("ascend_selfcheck.txt"), help="the file to send")
    return parser.parse_args(arguments)


def main() -> int:
    import logging

    options = parse_args()
    if options.output.is_dir():
        raise UserError(f"{options.output} is a folder; expected a file to write")
    with tempfile.TemporaryDirectory() as folder, replacing(options.output) as report:
        host = Host(options.device_target, options.device_id, options.limit, report, Path(folder))
        rows = []
        for name, check in checks(host):
            rows.append(run_check(host, name, check))
            logging.info("%-12s %s: %s", rows[-1].state, name, rows[-1].remark)
        host.say("\n" + "\n".join(f"{row.state:12} {row.name}: {row.remark}" for row in rows))
    logging.info(
        "all that was printed is in %s: it names this machine's folders; read it before you send it", options.output
    )
    return 1 if any(row.state == WRONG for row in rows) else 0


if __name__ == "__main__":
    cli.run(main)
