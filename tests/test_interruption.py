"""Signals as a terminal sends them: to every process of its foreground group, on a pseudo-terminal."""

import csv
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.conftest import ROOT
from tests.test_distributed import ENVIRONMENT, SCRIPT, start, table, workers_of, write

pytestmark = pytest.mark.long

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]

# A state to wait for after each step.
STATE_A_STEP = ["--batch_size", "1", "--save_checkpoint_steps", "1"]


class Terminal:
    """A command in a session of its own on a pseudo-terminal, as an interactive shell starts it."""

    def __init__(self, command, cwd):
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.chdir(cwd)
            for number, _ in SIGNALS:  # whoever runs the tests in the background may have them ignored
                signal.signal(number, signal.SIG_DFL)
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
    return [path for path in Path(folder).rglob("*") if ".partial-" in path.name]


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
    wait_for(lambda: "the state is saved; to go on: " in (tmp_path / "train.log").read_text(), 10)
    if number != signal.SIGHUP:
        assert b"the state is saved; to go on: " in terminal.screen
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


def test_what_the_end_takes_from_the_work_is_no_failure(tmp_path):
    """The work runs on while what is half-written is removed, and fails on what is gone: the exit code stays."""
    (tmp_path / "work.py").write_text("""
import os
from pathlib import Path

from src import cli, errors, files


def main():
    with files.discarded_at_exit(files.partial_path(Path("out"))) as folder:
        folder.mkdir()
        for number in range(5000):
            (folder / str(number)).touch()
        print("ready", flush=True)
        while len(os.listdir(folder)) == 5000:
            pass
        raise errors.CheckFailed("a file is gone")


cli.run(main)
""")
    process = subprocess.Popen([sys.executable, "work.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.communicate(timeout=60) == ("", "") and process.returncode == 143
    assert [path.name for path in tmp_path.iterdir()] == ["work.py"]


def stop_two_workers(arguments, folder, number):
    """Start two workers and interrupt them after their second step; the exit code and what was on the screen."""
    terminal = Terminal(["/bin/bash", SCRIPT, *arguments], folder)
    wait_for(lambda: (folder / "Model/Ckpt/FineNet_2_rank0.ckpt").exists())
    interrupt(terminal, number)
    code = terminal.exit_code()
    (log,) = folder.glob("train_logs/*/device0/train.log")
    assert "the state is saved; to go on: " in log.read_text() and not leftovers(folder)
    assert "timed out" not in (log.parents[1] / "msrun.log").read_text()  # nobody waits for who has ended
    return code, terminal.screen


def test_two_workers_stop_when_the_window_is_closed(nyu, fine_stage, tmp_path):
    ranks = write(tmp_path / "table.json", table(2))
    code, _ = stop_two_workers([nyu, ranks, *fine_stage, *STATE_A_STEP, "--epochs_fine", 100], tmp_path, signal.SIGHUP)
    assert code == 129


def test_two_workers_that_were_stopped_or_lost_one_of_them_resume_exactly(nyu, fine_stage, forked, tmp_path):
    """Unbroken; stopped by Ctrl-C and then with one worker killed by SIGKILL: the same weights."""
    ranks = write(tmp_path / "table.json", table(2))
    arguments = [nyu, ranks, *fine_stage, *STATE_A_STEP, "--epochs_fine", 3, "--learning_rate_fine", 1e-3,
                 "--val_data", nyu]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    unbroken = start(arguments, whole)
    output, errors = unbroken.communicate(timeout=600)
    assert unbroken.returncode == 0, output + errors
    assert len(re.findall(r"abs_rel: ", output)) == 3  # once an epoch, from rank 0

    evaluated = forked("eval.py", "--test_data", nyu, "--coarse_ckpt_model", fine_stage[-1], "--fine_ckpt_model",
                       "Model/Ckpt/FinalFineNet_rank0.ckpt", "--output_dir", "report", cwd=whole)
    assert evaluated.returncode == 0, evaluated.stderr
    expected = json.loads((whole / "report" / "metrics.json").read_text())["metrics"]["FineNet"]
    with open(whole / "Model" / "Log" / "fine_rank0.csv", newline="") as file:
        validated = [row for row in csv.DictReader(file) if row["abs_rel"]][-1]
    for name in ("delta1", "abs_rel", "rmse", "si"):  # each rank scored its share, the sums made the mean
        assert float(validated[name]) == pytest.approx(expected[name], abs=1e-5)

    code, screen = stop_two_workers(arguments, broken, signal.SIGINT)
    assert code == 130 and b"the state is saved; to go on: " in screen

    killed = start([*arguments, "--resume"], broken)
    wait_for(lambda: (broken / "Model/Ckpt/FineNet_6_rank0.ckpt").exists())
    os.kill(workers_of(killed)[1], signal.SIGKILL)
    output, errors = killed.communicate(timeout=120)
    assert killed.returncode == 137, output + errors
    assert not any("timed out" in log.read_text() for log in broken.glob("train_logs/*/msrun.log"))
    assert "device1/train.log" in errors

    resumed = start([*arguments, "--resume"], broken)
    output, errors = resumed.communicate(timeout=600)
    assert resumed.returncode == 0, output + errors
    for name in ("FinalFineNet_rank0.ckpt", "FineNet_12_rank0.ckpt"):
        ours, theirs = (folder / "Model" / "Ckpt" / name for folder in (broken, whole))
        assert ours.read_bytes() == theirs.read_bytes(), name
    logs = list((broken / "train_logs").iterdir())
    assert len(logs) == 3 and all((log / "device1" / "train.log").is_file() for log in logs)


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
