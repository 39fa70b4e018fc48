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

from src.base import files
from tests.conftest import ROOT
from tests.test_distributed import ENVIRONMENT, SCRIPT, start, table, workers_of, write
from tests.test_environment import path_without

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
    wait_for(lambda: "the state is saved; to resume: " in (tmp_path / "train.log").read_text(), 10)
    if number != signal.SIGHUP:
        assert b"the state is saved; to resume: " in terminal.screen
    assert not leftovers(tmp_path)
    if number != signal.SIGINT:
        return
    resume = (tmp_path / "train.log").read_text().split("to resume: ")[1].splitlines()[0]
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

from src.base import cli, errors, files


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
    process = subprocess.Popen(
        [sys.executable, "work.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.communicate(timeout=60) == ("", "") and process.returncode == 143
    assert [path.name for path in tmp_path.iterdir()] == ["work.py"]


POOL = """
import multiprocessing, sys, time
from src.base import cli

def main(stop):
    import train
    from src.training.trainer import Trainer

    launch = Trainer.launch

    def with_a_pool(self, *arguments, **named):
        if self.step == 0:  # as CANN's compiler does while the first step is compiled
            main = sys.modules["__main__"]
            file, main.__file__ = main.__file__, None
            multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(600,), daemon=True).start()
            main.__file__ = file
        return launch(self, *arguments, **named)

    Trainer.launch = with_a_pool
    return train.main(stop)

cli.run(main)
"""


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_pool_of_another_s_does_not_let_a_signal_through(nyu, fine_stage, run, tmp_path, number, code):
    """Python's resource tracker, which such a pool starts, unblocks SIGTERM and SIGINT."""
    (tmp_path / "pool.py").write_text(POOL)
    arguments = [*map(str, ["--data_url", nyu, *fine_stage, *STATE_A_STEP])]
    process = subprocess.Popen(
        [sys.executable, "pool.py", *arguments, "--epochs_fine", "100"],
        cwd=tmp_path,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    wait_for(lambda: (tmp_path / "Model/Ckpt/FineNet_2.ckpt").exists())
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)  # to the end of the file: no process of the pool has it open any more
    assert process.returncode == code and f"{number.name}: stopped, the state is saved" in output, output
    step = max(int(path.stem.split("_")[1]) for path in (tmp_path / "Model/Ckpt").glob("FineNet_*.ckpt"))
    result = run("train.py", *arguments, "--resume", "--max_steps", 1, cwd=tmp_path)
    assert result.returncode == 0 and f"FineNet_{step}.ckpt" in result.stdout.split("resuming from ")[1], result.stderr


def processes_of(text):
    """The processes with `text` in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text in path.read_text():
                found.append(int(path.parent.name))
        except OSError:  # it has ended
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("group", [False, True], ids=["process", "group"])
def test_a_pool_ends_with_its_parent(run, tmp_path, number, group):
    folder = tmp_path / "rooms"
    process = subprocess.Popen(
        [sys.executable, ROOT / "tools/make_sample_nyu.py", folder, "--scenes", "500"],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: list(folder.rglob("*.jpg")))
    assert len(processes_of(str(folder))) > 1
    (os.killpg if group else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number) and errors == ""
    wait_for(lambda: not processes_of(str(folder)), 10)
    if number != signal.SIGKILL:
        assert not list(folder.iterdir())
    if not group:
        few = ["--scenes", 1, "--pairs_per_scene", 1, "--test_pairs", 1]
        assert run("tools/make_sample_nyu.py", folder, *few, cwd=tmp_path).returncode == 0
        assert {path.name for path in folder.iterdir()} == {"Train", "Test"}


def test_a_process_of_the_pool_that_is_killed_ends_the_command_in_one_line(tmp_path):
    folder = tmp_path / "rooms"
    process = subprocess.Popen(
        [sys.executable, ROOT / "tools/make_sample_nyu.py", folder, "--scenes", "500"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: list(folder.rglob("*.jpg")))
    os.kill(max(set(processes_of(str(folder))) - {process.pid}), signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and not list(folder.iterdir())
    assert errors.splitlines() == [
        "make_sample_nyu.py: error: a process of the pool was ended from outside: too little memory?"
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_an_export_leaves_no_folder(trained, run, tmp_path, number):
    checkpoint = trained / "Model/Ckpt/FinalCoarseNet.ckpt"
    arguments = ["--coarse_or_fine", "coarse", "--ckpt_file", str(checkpoint)]
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    process = subprocess.Popen(
        [sys.executable, ROOT / "export.py", *arguments],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: list(tmp_path.glob("Model/MindIR/.*/*")))
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (-number, 128 + number) and errors == ""
    if number == signal.SIGKILL:  # the next one removes it, and not what one that runs is writing
        (tmp_path / "Model/MindIR/.of_mine").mkdir()
        assert run("export.py", *arguments, cwd=tmp_path, TMPDIR=str(tmp_path / "tmp")).returncode == 0
        left = {path.name for path in (tmp_path / "Model/MindIR").iterdir()}
        assert left == {"FinalCoarseNet.mindir", ".of_mine"}
    else:
        assert not list((tmp_path / "Model/MindIR").iterdir())
    assert not list((tmp_path / "tmp").iterdir())


def test_a_folder_that_another_process_works_in_stays(tmp_path):
    code = (
        "import sys, pathlib\nfrom src.base import files\nwith files.temporary_folder(sys.argv[1]) as folder:\n"
        "    print(folder, flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], cwd=ROOT, stdin=subprocess.PIPE, text=True, stdout=subprocess.PIPE
    )
    theirs = Path(other.stdout.readline().strip())
    with files.temporary_folder(tmp_path) as ours:
        assert set(tmp_path.iterdir()) == {theirs, ours}
    other.kill()
    other.communicate()
    assert list(tmp_path.iterdir()) == [theirs]
    with files.temporary_folder(tmp_path) as ours:
        assert list(tmp_path.iterdir()) == [ours]


def test_two_workers_stop_where_there_is_no_procps(nyu, fine_stage, tmp_path):
    programs = path_without(tmp_path / "bin", "pgrep", "pkill", "ps", "pidof")
    ranks = write(tmp_path / "table.json", table(2))
    command = ["/bin/bash", SCRIPT, nyu, ranks, *fine_stage, *STATE_A_STEP, "--epochs_fine", "1000"]
    process = subprocess.Popen(
        [*map(str, command)],
        cwd=tmp_path,
        env={**ENVIRONMENT, "PATH": str(programs)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: (tmp_path / "Model/Ckpt/FineNet_2_rank0.ckpt").exists())
    process.terminate()
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 143 and "the state is saved; to resume: " in output, errors
    assert "not found" not in errors and not processes_of(str(tmp_path))


def stop_two_workers(arguments, folder, number):
    """Start two workers and interrupt them after their second step; the exit code and what was on the screen."""
    terminal = Terminal(["/bin/bash", SCRIPT, *arguments], folder)
    wait_for(lambda: (folder / "Model/Ckpt/FineNet_2_rank0.ckpt").exists())
    interrupt(terminal, number)
    code = terminal.exit_code()
    (log,) = folder.glob("train_logs/*/device0/train.log")
    assert "the state is saved; to resume: " in log.read_text() and not leftovers(folder)
    assert "timed out" not in (log.parents[1] / "msrun.log").read_text()  # nobody waits for who has ended
    return code, terminal.screen


def test_two_workers_stop_when_the_window_is_closed(nyu, fine_stage, tmp_path):
    ranks = write(tmp_path / "table.json", table(2))
    code, _ = stop_two_workers([nyu, ranks, *fine_stage, *STATE_A_STEP, "--epochs_fine", 100], tmp_path, signal.SIGHUP)
    assert code == 129


def test_two_workers_that_were_stopped_or_lost_one_of_them_resume_exactly(nyu, fine_stage, forked, tmp_path):
    """Unbroken; stopped by Ctrl-C and then with one worker killed by SIGKILL: the same weights."""
    ranks = write(tmp_path / "table.json", table(2))
    arguments = [
        nyu,
        ranks,
        *fine_stage,
        *STATE_A_STEP,
        "--epochs_fine",
        3,
        "--learning_rate_fine",
        1e-3,
        "--val_data",
        nyu,
    ]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    unbroken = start(arguments, whole)
    output, errors = unbroken.communicate(timeout=600)
    assert unbroken.returncode == 0, output + errors
    assert len(re.findall(r"abs_rel: ", output)) == 3  # once an epoch, from rank 0

    evaluated = forked(
        "eval.py",
        "--test_data",
        nyu,
        "--coarse_ckpt_model",
        fine_stage[-1],
        "--fine_ckpt_model",
        "Model/Ckpt/FinalFineNet_rank0.ckpt",
        "--output_dir",
        "report",
        cwd=whole,
    )
    assert evaluated.returncode == 0, evaluated.stderr
    expected = json.loads((whole / "report" / "metrics.json").read_text())["metrics"]["FineNet"]
    with open(whole / "Model" / "Log" / "fine_rank0.csv", newline="") as file:
        validated = [row for row in csv.DictReader(file) if row["abs_rel"]][-1]
    for name in ("delta1", "abs_rel", "rmse", "si"):  # each rank scored its share, the sums made the mean
        assert float(validated[name]) == pytest.approx(expected[name], abs=1e-5)

    code, screen = stop_two_workers(arguments, broken, signal.SIGINT)
    assert code == 130 and b"the state is saved; to resume: " in screen

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
