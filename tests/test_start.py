"""How a training begins: everything is checked before anything is touched."""

import csv
import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from src.data import packed, plain
from src.net import FineNet
from src.nets import checkpoint
from src.training import run_folder
from src.training.trainer import Trainer
from tests.conftest import ROOT
from tests.test_commands import one_line


def tree(folder):
    """Every file with its content, but for the lock."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture(scope="module")
def fine(fine_stage):
    return [*fine_stage, "--batch_size", 4]


@pytest.fixture(scope="module")
def earlier(nyu, forked, fine, tmp_path_factory):
    """A folder with a finished FineNet of two epochs."""
    folder = tmp_path_factory.mktemp("earlier")
    result = forked("train.py", "--data_url", nyu, "--val_data", nyu, *fine, "--epochs_fine", 2, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def again(earlier, tmp_path):
    shutil.copytree(earlier / "Model", tmp_path / "Model")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pre_trained", "absent.ckpt"], "absent.ckpt: no such checkpoint"),
        (["--batch_size", 9], "8 training pairs do not fill a batch of 9"),
        (["--val_data", "absent"], "absent: no such folder"),
    ],
)
def test_an_overwrite_that_cannot_begin_leaves_the_old_run_as_it_was(again, nyu, forked, fine, arguments, message):
    before = tree(again)
    line = one_line(forked("train.py", "--data_url", nyu, *fine, "--overwrite", *arguments, cwd=again))
    assert message in line
    assert tree(again) == before


def test_an_overwrite_does_not_begin_with_weights_that_it_replaces(nyu, forked, fine_stage, tmp_path):
    (tmp_path / "Model" / "Ckpt").mkdir(parents=True)
    shutil.copy(fine_stage[-1], tmp_path / "Model" / "Ckpt" / "FinalCoarseNet.ckpt")
    before = tree(tmp_path)
    line = one_line(
        forked(
            "train.py",
            "--data_url",
            nyu,
            "--stage",
            "coarse",
            "--coarse_net",
            "paper",
            "--batch_size",
            4,
            "--overwrite",
            "--pre_trained",
            "Model/Ckpt/FinalCoarseNet.ckpt",
            cwd=tmp_path,
        )
    )
    assert "is of the run that --overwrite replaces" in line and tree(tmp_path) == before


def test_a_broken_validation_picture_is_named_before_anything_is_touched(again, nyu, forked, fine):
    data = shutil.copytree(nyu, again / "NYU")
    broken = data / "Test" / "00002_colors.png"
    broken.write_bytes(broken.read_bytes()[:5000])
    before = tree(again)
    line = one_line(forked("train.py", "--data_url", nyu, "--val_data", data, *fine, "--overwrite", cwd=again))
    assert "00002_colors.png: broken image" in line and tree(again) == before
    line = one_line(forked("train.py", "--data_url", nyu, "--val_data", data, *fine, "--train_url", "new", cwd=again))
    assert "00002_colors.png" in line and not (again / "new").exists()


def test_an_overwrite_that_dies_in_its_first_steps_leaves_the_old_run_where_it_was_moved_to(again, nyu, forked, fine):
    before = tree(again / "Model")
    line = one_line(
        forked(
            "train.py",
            "--data_url",
            nyu,
            *fine,
            "--overwrite",
            "--batch_size",
            2,
            "--learning_rate_fine",
            1e30,
            cwd=again,
        )
    )
    assert "step 2: the loss is nan" in line
    (moved,) = (again / "Model").glob("replaced-*-1")
    assert tree(moved) == before


def test_an_overwrite_begins_anew(again, nyu, forked, fine):
    result = forked(
        "train.py",
        "--data_url",
        nyu,
        *fine,
        "--overwrite",
        "--max_steps",
        3,
        "--save_checkpoint_steps",
        3,
        "--seed",
        5,
        cwd=again,
    )
    assert result.returncode == 0, result.stderr
    names = {path.name for path in (again / "Model" / "Ckpt").iterdir()}
    assert names == {"FineNet_2.ckpt", "FineNet_3.ckpt", "FinalFineNet.ckpt"}  # an epoch's end, and step 3
    assert json.loads((again / "Model" / "Log" / "options.json").read_text())["seed"] == 5
    rows = list(csv.DictReader((again / "Model" / "Log" / "fine.csv").open()))
    assert [row["step"] for row in rows if row["loss"]] == ["1"] and not any(row["abs_rel"] for row in rows)


def test_a_resume_without_a_state_says_what_it_found(again, nyu, forked, fine):
    for path in (again / "Model" / "Ckpt").glob("FineNet_*"):
        path.unlink()
    before = tree(again)
    line = one_line(forked("train.py", "--data_url", nyu, *fine, "--resume", cwd=again))
    assert "FineNet_<step>.ckpt: --resume finds no state to resume from (found: FinalFineNet.ckpt" in line
    assert tree(again) == before
    line = one_line(forked("train.py", "--data_url", nyu, *fine, "--resume", "--train_url", "Modle", cwd=again))
    assert "Modle/Ckpt/FineNet_<step>.ckpt: --resume finds no state to resume from (found: no run)" in line
    result = forked("train.py", "--data_url", nyu, *fine, "--resume", "--overwrite", cwd=again)
    assert result.returncode == 2 and "not allowed with" in result.stderr


def test_two_trainings_do_not_share_a_folder(again, nyu, forked, fine):
    with open(again / "Model" / ".lock", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        line = one_line(forked("train.py", "--data_url", nyu, *fine, "--resume", cwd=again))
    assert f"another training writes there (process {os.getpid()})" in line
    process = subprocess.Popen(
        [
            sys.executable,
            ROOT / "train.py",
            "--data_url",
            nyu,
            *map(str, fine),
            "--train_url",
            "two",
            "--save_checkpoint_steps",
            "1",
            "--epochs_fine",
            "1000",
        ],
        cwd=again,
        stdout=subprocess.DEVNULL,
    )
    while not (again / "two" / "Ckpt" / "FineNet_1.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    assert f"process {process.pid}" in one_line(
        forked("train.py", "--data_url", nyu, *fine, "--train_url", "two", "--overwrite", cwd=again)
    )
    process.send_signal(signal.SIGKILL)  # the lock goes with the process
    process.wait()
    result = forked(
        "train.py", "--data_url", nyu, *fine, "--train_url", "two", "--resume", "--epochs_fine", 1, cwd=again
    )
    assert result.returncode == 0, result.stderr


def test_a_file_system_without_locks_costs_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with run_folder.Folder(tmp_path / "Model", "").locked():
        assert (tmp_path / "Model" / ".lock").read_text() == f"{os.getpid()}\n"
    assert "cannot be locked" in caplog.text and "No locks available" in caplog.text


def test_a_state_of_another_net_is_not_resumed_from():
    trainer = Trainer(FineNet(), "composite", 1e-3, inputs=lambda rgb: (rgb, rgb))
    state = {name: parameter.asnumpy() for name, parameter in trainer.state().items()}
    trainer.restore(checkpoint.Checkpoint("FineNet_7.ckpt", state, {"step": 7}))
    assert trainer.step == 7
    del state["moment1.conv1.weight"]
    with pytest.raises(checkpoint.CheckpointError, match=r"FineNet_7\.ckpt: not a training state of FineNet"):
        trainer.restore(checkpoint.Checkpoint("FineNet_7.ckpt", state, {"step": 7}))


def test_a_validation_that_fails_costs_a_warning_and_no_state(nyu, forked, fine, tmp_path):
    """A picture that breaks after the start: the epoch's state is there, training goes on to its end."""
    data = shutil.copytree(nyu, tmp_path / "NYU")
    process = subprocess.Popen(
        [
            sys.executable,
            ROOT / "train.py",
            "--data_url",
            nyu,
            "--val_data",
            data,
            *map(str, fine),
            "--epochs_fine",
            "3",
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "Model" / "Ckpt" / "FineNet_2.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    (data / "Test" / "00002_colors.png").write_bytes(b"\x89PNG no more")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert "warning: no validation of epoch 3:" in output and "00002_colors.png: broken image" in output
    assert (tmp_path / "Model" / "Ckpt" / "FinalFineNet.ckpt").exists()
    rows = [row for row in csv.DictReader((tmp_path / "Model" / "Log" / "fine.csv").open()) if row["mean_loss"]]
    assert len(rows) == 3 and not rows[2]["abs_rel"]


def test_an_epoch_whose_validation_was_cut_off_is_validated_by_the_resume(earlier, nyu, forked, fine, tmp_path):
    """Killed after the state and before the row of the epoch: the resumed run writes the row that is missing."""
    arguments = ["--data_url", nyu, "--val_data", nyu, *fine]
    assert forked("train.py", *arguments, "--epochs_fine", 1, cwd=tmp_path).returncode == 0
    log = tmp_path / "Model" / "Log" / "fine.csv"
    log.write_text(
        "".join(line for line in log.read_text().splitlines(True) if line.split(",")[4] in ("", "mean_loss"))
    )
    result = forked("train.py", *arguments, "--epochs_fine", 2, "--resume", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    tables = []
    for folder in (earlier, tmp_path):
        with open(folder / "Model" / "Log" / "fine.csv", newline="") as file:
            tables.append(
                [
                    {key: value for key, value in row.items() if key not in ("step_seconds", "images_per_s")}
                    for row in csv.DictReader(file)
                    if row["mean_loss"]
                ]
            )
    assert tables[0] == tables[1]
    ours, theirs = ((folder / "Model" / "Ckpt" / "FineNet_4.ckpt").read_bytes() for folder in (tmp_path, earlier))
    assert ours == theirs


def test_predictions_that_are_not_finite_are_no_best_weights(nyu, forked, fine, tmp_path):
    """A net whose every prediction is NaN while its loss is not: the validation is refused, by name."""
    data = shutil.copytree(nyu, tmp_path / "NYU")
    for path in (data / "Test").glob("*_depth.png"):
        cv2.imwrite(str(path), np.zeros((480, 640), np.uint16))
    result = forked("train.py", "--data_url", nyu, "--val_data", data, *fine, "--epochs_fine", 1, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "warning: no validation of epoch 1: no measured pixel in any target" in result.stdout
    assert not (tmp_path / "Model" / "Ckpt" / "BestFineNet.ckpt").exists() and "abs_rel: 0.0000" not in result.stdout


def test_data_that_changed_under_the_same_names_is_not_resumed_on_in_silence(again, nyu, forked, fine):
    data = shutil.copytree(nyu, again / "NYU")
    shutil.copy(data / "Train" / "sample_0001_out" / "1.jpg", data / "Train" / "sample_0001_out" / "2.jpg")
    arguments = ["--data_url", data, *fine, "--epochs_fine", 3, "--resume"]
    line = one_line(forked("train.py", *arguments, cwd=again))
    assert "files of the training data have another size or time" in line
    result = forked("train.py", *arguments, "--allow_changed_data", cwd=again)
    assert result.returncode == 0, result.stderr


def test_a_packed_set_stands_for_the_files_it_was_made_of(again, nyu, forked, fine):
    packed.pack(nyu, again / "set", 2)
    assert packed.open_training(again / "set").data_digest() == plain.PlainPairs(nyu).data_digest()
    result = forked("train.py", "--data_url", "set", *fine, "--epochs_fine", 3, "--resume", cwd=again)
    assert result.returncode == 0, result.stderr


def test_flipped_bytes_in_a_packed_set_are_noticed_while_training(nyu, forked, fine, tmp_path):
    packed.pack(nyu, tmp_path / "set", 2)
    shard = tmp_path / "set" / "train_000.mindrecord"
    content = bytearray(shard.read_bytes())
    rgb = plain.PlainPairs(nyu).load(3)[0].tobytes()
    place = content.find(rgb[5000:5400])
    assert place > 0
    content[place] ^= 255
    shard.write_bytes(content)
    line = one_line(forked("train.py", "--data_url", "set", *fine, "--epochs_fine", 1, cwd=tmp_path))
    assert "set: sample_0001_out/4: damaged: does not match its checksum" in line


@pytest.mark.long
def test_rank_0_alone_reads_pre_trained(nyu, tmp_path):
    """The other servers need not have the file: only what the first rank loads is handed out."""
    from src.nets.device import Device
    from src.training.build import build_trainer
    from train import parse_args

    options = parse_args(
        ["--data_url", str(nyu), "--coarse_net", "paper", "--pre_trained", str(tmp_path / "absent.ckpt")]
    )
    stage = options.stage("coarse", 2, "O0", 1, {})
    with pytest.raises(checkpoint.CheckpointError, match=r"absent\.ckpt: no such checkpoint"):
        build_trainer(stage, options.net, options.recipe, options.start, None, Device("CPU", 0, 2))
    assert build_trainer(stage, options.net, options.recipe, options.start, None, Device("CPU", 1, 2)).step == 0
