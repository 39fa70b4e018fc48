"""Signals as a terminal sends them: to every process of its foreground group, on a pseudo-terminal."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.conftest import ROOT
from tests.test_distributed import table, write

pytestmark = pytest.mark.long

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "DEVICE_TARGET": "CPU",
    "PYTHON": sys.executable,
}

# A state to wait for after each step.
STATE_A_STEP = ["--batch_size", "1", "--save_checkpoint_steps", "1"]


class Terminal:
    """A command in a session of its own on a pseudo-terminal, as an interactive shell starts it."""

    def __init__(self, command, cwd):
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.chdir(cwd)
            os.execve(command[0], list(map(str, command)), ENVIRONMENT)
        self.screen = b""

    def read(self):
        try:
            while chunk := os.read(self.descriptor, 65536):
                self.screen += chunk
        except OSError:  # the other side has closed it
            pass

    def type_ctrl_c(self):
        os.write(self.descriptor, b"\x03")

    def close(self):
        """Close the window: the kernel sends SIGHUP."""
        os.close(self.descriptor)

    def exit_code(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def wait_for(condition, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def interrupt(terminal, number):
    if number == signal.SIGINT:
        terminal.type_ctrl_c()
    elif number == signal.SIGHUP:
        terminal.close()
        return
    else:
        os.killpg(terminal.pid, number)
    terminal.read()


def leftovers(folder):
    return [path for path in Path(folder).rglob("*") if ".partial-" in path.name or ".next-" in path.name]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_standalone_training_saves_and_says_how_to_go_on(nyu, fine_stage, tmp_path, number, code):
    command = [
        "/bin/bash",
        ROOT / "scripts/run_standalone_train_ascend.sh",
        nyu,
        "0",
        *fine_stage,
        *STATE_A_STEP,
        "--epochs_fine",
        "100",
    ]
    terminal = Terminal(command, tmp_path)
    wait_for(lambda: (tmp_path / "Model/Ckpt/FineNet_2.ckpt").exists())
    interrupt(terminal, number)
    assert terminal.exit_code() == code
    wait_for(lambda: "the state is saved; to go on: bash " in (tmp_path / "train.log").read_text(), 10)
    if number != signal.SIGHUP:
        assert b"the state is saved; to go on: bash " in terminal.screen
    assert not leftovers(tmp_path)
    if number != signal.SIGINT:
        return
    resume = (tmp_path / "train.log").read_text().split("to go on: ")[1].splitlines()[0]
    result = subprocess.run(
        f"{resume} --max_steps 1",
        shell=True,
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0 and "resuming from" in result.stdout, result.stdout + result.stderr
    assert (tmp_path / "train.log").read_text().count("device: CPU") == 2  # the log goes on, too


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_an_evaluation_ends_at_once(nyu, trained, tmp_path, number, code):
    data = tmp_path / "NYU" / "Test"
    data.mkdir(parents=True)
    for copy in range(100):  # so that there is something to interrupt
        for part in ("colors", "depth"):
            (data / f"{copy:05d}_{part}.png").symlink_to(nyu / "Test" / f"0000{copy % 4}_{part}.png")
    checkpoints = [trained / f"Model/Ckpt/Final{net}Net.ckpt" for net in ("Coarse", "Fine")]
    terminal = Terminal(
        ["/bin/bash", ROOT / "scripts/run_eval.sh", data, *checkpoints, "--output_dir", "report"], tmp_path
    )
    wait_for(
        lambda: "device: CPU" in (tmp_path / "eval.log").read_text() if (tmp_path / "eval.log").exists() else False
    )
    time.sleep(2)
    interrupt(terminal, number)
    assert terminal.exit_code() == code
    assert "Traceback" not in (tmp_path / "eval.log").read_text()
    assert "delta1_loss" not in (tmp_path / "eval.log").read_text() and not leftovers(tmp_path)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_prediction_leaves_nothing_partial(red_onnx, tmp_path, number, code):
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 12, (640, 480))
    for _ in range(300):
        writer.write(np.zeros((480, 640, 3), np.uint8))
    writer.release()
    nets = ["--coarse_onnx", red_onnx[0], "--fine_onnx", red_onnx[1]]
    terminal = Terminal(
        [sys.executable, ROOT / "predict.py", "--input", path, "--save", "side", "npy", *nets], tmp_path
    )
    wait_for(lambda: len(list(tmp_path.glob("predictions/.partial-*/*.npy"))) > 1)
    interrupt(terminal, number)
    assert terminal.exit_code() == code
    assert not list((tmp_path / "predictions").iterdir())


@pytest.mark.parametrize(("number", "code"), [one for one in SIGNALS if one[0] != signal.SIGTERM])
def test_two_workers_stop_together(nyu, fine_stage, tmp_path, number, code):
    """SIGTERM: test_distributed.py."""
    ranks = write(tmp_path / "table.json", table(2))
    terminal = Terminal(
        [
            "/bin/bash",
            ROOT / "scripts/run_distributed_train_ascend.sh",
            nyu,
            ranks,
            *fine_stage,
            *STATE_A_STEP,
            "--epochs_fine",
            "100",
        ],
        tmp_path,
    )
    wait_for(lambda: (tmp_path / "Model/Ckpt/FineNet_2_rank0.ckpt").exists())
    interrupt(terminal, number)
    assert terminal.exit_code() == code
    (log,) = tmp_path.glob("train_logs/*/device0/train.log")
    assert "the state is saved; to go on: bash " in log.read_text() and not leftovers(tmp_path)
    assert "timed out" not in (log.parents[1] / "msrun.log").read_text()  # nobody waits for who has ended
    if number != signal.SIGHUP:
        assert b"the state is saved; to go on: bash " in terminal.screen


def test_nohup_keeps_a_training_alive(nyu, fine_stage, tmp_path):
    terminal = Terminal(
        [
            "/usr/bin/env",
            "nohup",
            "bash",
            ROOT / "scripts/run_standalone_train_ascend.sh",
            nyu,
            "0",
            *fine_stage,
            *STATE_A_STEP,
            "--max_steps",
            "15",
        ],
        tmp_path,
    )
    wait_for(lambda: (tmp_path / "Model/Ckpt/FineNet_1.ckpt").exists())
    terminal.close()
    assert terminal.exit_code() == 0
    assert (tmp_path / "Model/Ckpt/FinalFineNet.ckpt").exists()
