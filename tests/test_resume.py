"""Stopping, killing, damaging and filling the disk: what was trained is kept, and a resume is exact."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from src.nets import checkpoint
from tests.conftest import ROOT
from tests.test_commands import one_line

pytestmark = pytest.mark.long

KILLS = int(os.environ.get("DEPTHNET_KILLS", "3"))  # 20 for the long version


def arguments(nyu, *more):
    return [
        "--data_url",
        str(nyu),
        "--batch_size",
        "1",
        "--max_steps",
        "2",
        "--learning_rate_fine",
        "1e-3",
        "--save_checkpoint_steps",
        "1",
        *more,
    ]


def start(nyu, *more, **options):
    return subprocess.Popen([sys.executable, ROOT / "train.py", *arguments(nyu, *more)], text=True, **options)


@pytest.fixture(scope="module")
def unbroken(nyu, forked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    assert forked("train.py", *arguments(nyu), cwd=folder).returncode == 0
    return folder / "Model" / "Ckpt"


def assert_same(ours, theirs):
    for name in ("FinalCoarseNet.ckpt", "FinalFineNet.ckpt", "CoarseNet_2.ckpt", "FineNet_2.ckpt"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name


def test_a_run_that_is_killed_again_and_again_ends_like_one_that_is_not(nyu, unbroken, forked, tmp_path):
    """SIGKILL at random moments, the first one inside a save. So the same seed gives the same files, too."""
    rng, checkpoints = random.Random(0), tmp_path / "Model" / "Ckpt"
    for kill in range(KILLS):
        more = ["--resume"] if any(checkpoints.glob("CoarseNet_*")) else []
        process = start(nyu, *more, cwd=tmp_path, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + (120 if kill == 0 else rng.uniform(3, 12))
        while process.poll() is None and time.monotonic() < deadline:
            if kill == 0 and any(checkpoints.glob("CoarseNet_1.ckpt")) and any(checkpoints.glob(".partial-*")):
                break
            time.sleep(0.002)
        process.kill()
        process.wait()
        if kill == 0:
            assert any(checkpoints.glob(".partial-*"))
    result = forked("train.py", *arguments(nyu, "--resume"), cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert_same(checkpoints, unbroken)
    assert not list(checkpoints.glob(".*"))  # what the kill inside a save left behind is gone


def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(nyu, unbroken, tmp_path):
    """The other signals: test_interruption.py."""
    process = start(nyu, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (tmp_path / "Model" / "Ckpt" / "CoarseNet_1.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 143, output + errors
    assert "Traceback" not in errors
    command = output.strip().splitlines()[-1].split("to resume: ")[1]
    assert command.endswith("--resume")
    environment = {**os.environ, "PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(command, cwd=tmp_path, shell=True, check=True, capture_output=True, env=environment)
    assert_same(tmp_path / "Model" / "Ckpt", unbroken)


def test_a_second_signal_exits_at_once(nyu, tmp_path):
    process = start(nyu, cwd=tmp_path, stdout=subprocess.PIPE)
    while not (tmp_path / "Model" / "Ckpt" / "CoarseNet_1.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "the state is saved" not in output


def test_a_damaged_newest_state_falls_back_to_the_one_before(nyu, unbroken, forked, tmp_path):
    shutil.copytree(unbroken.parent, tmp_path / "Model")
    newest = tmp_path / "Model" / "Ckpt" / "CoarseNet_2.ckpt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    result = forked("train.py", *arguments(nyu, "--resume"), cwd=tmp_path)
    assert "CoarseNet_2.ckpt: damaged: its content does not match its checksum: falling back" in result.stdout
    assert "CoarseNet_1.ckpt" in result.stdout.split("resuming from ")[1].splitlines()[0]
    assert_same(tmp_path / "Model" / "Ckpt", unbroken)


def test_options_that_would_change_the_result_are_refused_by_name(nyu, unbroken, tmp_path, forked):
    shutil.copytree(unbroken.parent, tmp_path / "Model")
    log = tmp_path / "Model" / "Log"
    before = (log / "options.json").read_bytes()
    line = one_line(forked("train.py", "--data_url", nyu, "--batch_size", 2, "--seed", 7, "--resume", cwd=tmp_path))
    assert "batch_size was 1, now 2" in line and "seed was 0, now 7" in line
    assert json.loads(before)["seed"] == 0


def test_epochs_may_grow(nyu, fine_stage, forked, tmp_path):
    base = ["--data_url", nyu, "--batch_size", 4, *fine_stage]
    for name, epochs in (("grown", 1), ("grown", 2), ("whole", 2)):
        (tmp_path / name).mkdir(exist_ok=True)
        resume = ["--resume"] if epochs == 2 and name == "grown" else []
        result = forked("train.py", *base, "--epochs_fine", epochs, *resume, cwd=tmp_path / name)
        assert result.returncode == 0, result.stdout + result.stderr
    contents = [(tmp_path / name / "Model" / "Ckpt" / "FineNet_4.ckpt").read_bytes() for name in ("grown", "whole")]
    assert contents[0] == contents[1]


@pytest.fixture
def small_disk(tmp_path):
    """A real file system on which one training state of CoarseNet fits, and two do not."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_stops_with_a_line_and_leaves_the_last_good_state(nyu, forked, small_disk, tmp_path):
    result = forked(
        "train.py",
        "--data_url",
        nyu,
        "--batch_size",
        1,
        "--max_steps",
        4,
        "--save_checkpoint_steps",
        2,
        "--train_url",
        small_disk / "Model",
        cwd=tmp_path,
    )
    assert "No space left on device" in one_line(result)
    checkpoints = small_disk / "Model" / "Ckpt"
    assert [path.name for path in checkpoints.iterdir()] == ["CoarseNet_2.ckpt"]
    assert checkpoint.load(checkpoints / "CoarseNet_2.ckpt").info["step"] == 2


def test_every_range_of_a_training_state_damaged_is_noticed(unbroken, tmp_path):
    """FineNet's state in sixty pieces, each flipped, zeroed, cut off: named, never a traceback, never loaded."""
    content = (unbroken / "FineNet_2.ckpt").read_bytes()
    path = tmp_path / "FineNet_2.ckpt"
    size = len(content) // 60
    for start in range(0, len(content), size):
        piece = content[start : start + size]
        variants = [
            content[:start],
            content[:start] + bytes(b ^ 0xFF for b in piece) + content[start + size :],
            content[:start] + bytes(len(piece)) + content[start + size :],
            content[:start] + content[start + size :],
        ]
        for variant in variants:
            if variant == content:
                continue
            path.write_bytes(variant)
            with pytest.raises(checkpoint.CheckpointError, match=r"FineNet_2\.ckpt"):
                checkpoint.load(path)
