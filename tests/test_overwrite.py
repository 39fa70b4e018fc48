"""What --overwrite replaces is moved aside as a whole: a kill at any of its operations loses nothing."""

import itertools
import shutil

import numpy as np
import pytest

from src.nets import checkpoint
from tests.test_commands import one_line
from tests.test_start import tree

pytestmark = pytest.mark.long
LOGS = ("options.json", "mean_map.json", "curves.png")


def name_of(file, suffix):
    stem, ending = file.rsplit(".", 1)
    return f"{stem}{suffix}.{ending}"


def leave_run(model, stages, suffix=""):
    """The files of a run, with contents that tell where they are from: those that another run's start moves."""
    files = [f"Log/{name_of(name, suffix)}" for name in LOGS]
    for stage in stages:
        net = f"{stage.capitalize()}Net"
        files += [
            f"Ckpt/{name_of(name, suffix)}"
            for name in (f"{net}_1.ckpt", f"{net}_2.ckpt", f"Final{net}.ckpt", f"Best{net}.ckpt")
        ]
        files += [
            f"Log/{name_of(name, suffix)}" for name in (f"{stage}.csv", f"{stage}_panels.png", f"{stage}_panels.npz")
        ]
        files.append(f"Log/tensorboard{suffix}/{stage}/events.out")
    for file in files:
        path = model / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"of the earlier run: {file}".encode())
    return files


def leave_coarse_net(path):
    """A checkpoint of the small coarse net."""
    rng = np.random.default_rng(0)
    checkpoint.save(
        path,
        {"conv.weight": rng.normal(0, 0.01, (1, 3, 12, 12)).astype(np.float32), "conv.bias": np.zeros(1, np.float32)},
        {"stage": "coarse", "coarse_net": "default"},
    )


def contents(model):
    return {
        path.relative_to(model).as_posix(): path.read_bytes()
        for path in model.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def assert_nothing_is_lost(model, before):
    now = sorted(contents(model).values())
    for file, content in before.items():
        assert content in now, file


EARLIER = {"coarse": ("coarse",), "fine": ("fine",), "both": ("coarse", "fine")}
NEW = {
    "all": ["--max_steps", 2],
    "all, 0 epochs": ["--epochs_coarse", 0, "--epochs_fine", 0],
    "coarse": ["--stage", "coarse", "--max_steps", 2],
    "coarse, 0 epochs": ["--stage", "coarse", "--epochs_coarse", 0],
    "fine": ["--stage", "fine", "--max_steps", 2],
    "fine, 0 epochs": ["--stage", "fine", "--epochs_fine", 0],
}


@pytest.mark.parametrize(
    ("earlier", "new", "step"),
    [
        *((earlier, new, 3 - 2 * (earlier == "both")) for earlier in EARLIER for new in NEW if "0 epochs" in new),
        *(("both", new, 9) for new in NEW if "0 epochs" not in new),
    ],
)
def test_a_kill_between_any_two_operations_loses_nothing(nyu, forked, tmp_path, earlier, new, step):
    """Killed in place of every `step`th operation on files; typed again, the command completes. Beside the earlier run
    lies a distributed one, which stays as it is."""
    model = tmp_path / "Model"
    moved = leave_run(model, EARLIER[earlier])
    others = leave_run(model, ("coarse", "fine"), "_rank0")
    if "fine" in new:
        leave_coarse_net(model / "Ckpt" / "FinalCoarseNet.ckpt")
        moved = [file for file in moved if "coarse" not in file and "Coarse" not in file]
    before = contents(model)
    command = ["train_tiny", "--data_url", nyu, "--batch_size", 4, "--overwrite", *NEW[new]]
    for killed_at in itertools.count(1, step):
        shutil.rmtree(model)
        for file, content in before.items():
            (model / file).parent.mkdir(parents=True, exist_ok=True)
            (model / file).write_bytes(content)
        killed = forked(*command, cwd=tmp_path, killed_at=killed_at)
        assert_nothing_is_lost(model, before)
        if finished := killed.returncode == 0:
            assert killed.stdout.count("moved the earlier run to ") == 1
        else:
            assert killed.returncode == 137, killed.stderr
            again = forked(*command, cwd=tmp_path)
            assert again.returncode == 0, again.stderr
        assert_nothing_is_lost(model, before)
        now = contents(model)
        assert all(now[file] == before[file] for file in others)
        assert not [file for file in moved if now.get(file) == before[file]]
        if finished:
            return


def test_what_was_killed_in_the_move_is_resumed_or_named(nyu, forked, tmp_path):
    """A run of before, one half of which is moved: --resume goes on with what is left of it, or says what it found."""
    leave_coarse_net(tmp_path / "Model" / "Ckpt" / "FinalCoarseNet.ckpt")
    command = ["train_tiny", "--data_url", nyu, "--batch_size", 4, "--stage", "fine"]
    assert forked(*command, "--max_steps", 2, "--save_checkpoint_steps", 1, cwd=tmp_path).returncode == 0
    unbroken = shutil.copytree(tmp_path / "Model", tmp_path / "unbroken")
    resumed = 0
    for killed_at in itertools.count(1):
        shutil.rmtree(tmp_path / "Model")
        shutil.copytree(unbroken, tmp_path / "Model")
        killed = forked(*command, "--epochs_fine", 0, "--overwrite", cwd=tmp_path, killed_at=killed_at)
        assert killed.returncode == 137
        if not (tmp_path / "Model/Ckpt/FineNet_2.ckpt").exists():
            break
        assert "already holds a run" in one_line(forked(*command, "--max_steps", 2, cwd=tmp_path))
        result = forked(*command, "--max_steps", 2, "--resume", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert (tmp_path / "Model/Ckpt/FinalFineNet.ckpt").read_bytes() == (
            unbroken / "Ckpt/FinalFineNet.ckpt"
        ).read_bytes()
        resumed += 1
    assert resumed > 3
    line = one_line(forked(*command, "--max_steps", 2, "--resume", cwd=tmp_path))
    assert (
        "--resume finds no state to resume from (found: replaced-" in line and "which --overwrite moved aside" in line
    )
    moved = next((tmp_path / "Model").glob("replaced-*"))
    result = forked(
        *command,
        "--max_steps",
        2,
        "--resume",
        "--train_url",
        moved,
        "--pre_trained",
        "Model/Ckpt/FinalCoarseNet.ckpt",
        cwd=tmp_path,
    )  # it is an output folder itself
    assert result.returncode == 0 and "fine net: 8 pairs" in result.stdout and "complete at step 2" in result.stdout


def test_an_overwrite_whose_only_save_is_the_last_one_leaves_this_run_s_files(nyu, forked, tmp_path):
    """CoarseNet alone, then both anew: every file is of the second run."""
    first = ["train_tiny", "--data_url", nyu, "--batch_size", 4, "--max_steps", 2, "--seed", 1, "--stage", "coarse"]
    second = ["train_tiny", "--data_url", nyu, "--batch_size", 4, "--max_steps", 2, "--seed", 2]
    assert forked(*first, cwd=tmp_path).returncode == 0
    before = contents(tmp_path / "Model")
    for command in ([*second, "--overwrite"], [*second, "--train_url", "alone"]):
        result = forked(*command, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    ours, theirs = contents(tmp_path / "Model"), contents(tmp_path / "alone")
    assert {name for name in ours if not name.startswith("replaced-")} == set(theirs)
    for name in theirs:
        if name.endswith(".ckpt"):
            assert ours[name] == theirs[name], name
    assert_nothing_is_lost(tmp_path / "Model", before)
    assert forked(*second, "--overwrite", "--epochs_coarse", 0, "--stage", "coarse", cwd=tmp_path).returncode == 0
    names = {path.name for path in (tmp_path / "Model" / "Ckpt").iterdir()}
    assert names == {"CoarseNet_0.ckpt", "FinalCoarseNet.ckpt"}  # the FineNet went with its CoarseNet
    assert_nothing_is_lost(tmp_path / "Model", ours)


def test_a_standalone_run_takes_no_file_of_another(nyu, forked, tmp_path):
    """Neither of a distributed run nor of what an earlier version has left half-way."""
    command = ["train_tiny", "--data_url", nyu, "--batch_size", 4, "--stage", "coarse"]
    assert forked(*command, "--max_steps", 2, cwd=tmp_path).returncode == 0
    checkpoints = tmp_path / "Model" / "Ckpt"
    for name in (
        ".next-CoarseNet_1_rank0.ckpt",
        ".next-CoarseNet_9.ckpt",
        "CoarseNet_9_rank0.ckpt",
        "FinalCoarseNet_rank0.ckpt",
    ):
        shutil.copy(checkpoints / "CoarseNet_2.ckpt", checkpoints / name)
    before = tree(checkpoints)
    result = forked(*command, "--max_steps", 2, "--resume", cwd=tmp_path)
    assert result.returncode == 0 and "resuming from Model/Ckpt/CoarseNet_2.ckpt" in result.stdout, result.stderr
    assert tree(checkpoints) == before
    assert forked(*command, "--max_steps", 2, "--overwrite", cwd=tmp_path).returncode == 0
    assert {name: content for name, content in tree(checkpoints).items() if "rank0" in name or "next" in name} == {
        name: content for name, content in before.items() if "rank0" in name or "next" in name
    }


def test_a_start_that_fails_moves_nothing(nyu, forked, tmp_path):
    """A broken depth map has no mean."""
    data = tmp_path / "NYU"
    shutil.copytree(nyu / "Train" / "sample_0001_out", data / "Train" / "one_out")
    leave_run(tmp_path / "Model", ("coarse",))
    (data / "Train" / "one_out" / "3.png").write_bytes(b"broken")
    before = tree(tmp_path)
    one_line(
        forked(
            "train_tiny",
            "--data_url",
            data,
            "--batch_size",
            2,
            "--overwrite",
            "--coarse_net",
            "paper",
            "--start",
            "imagenet",
            cwd=tmp_path,
        )
    )
    assert tree(tmp_path) == before


def test_a_finetuning_on_another_coarse_net_is_not_gone_on_with(nyu, forked, tmp_path):
    """CoarseNet is trained further by a resume: the FineNet on the earlier one is no start for the later."""
    command = ["train_tiny", "--data_url", nyu, "--batch_size", 4]
    assert forked(*command, "--max_steps", 2, cwd=tmp_path).returncode == 0
    line = one_line(forked(*command, "--max_steps", 3, "--resume", cwd=tmp_path))
    assert "FineNet_2.ckpt: FineNet was trained on another CoarseNet: --stage fine --overwrite begins" in line
    assert forked(*command, "--max_steps", 3, "--stage", "fine", "--overwrite", cwd=tmp_path).returncode == 0


def test_the_logs_of_a_run_whose_checkpoints_are_gone_are_kept(nyu, forked, tmp_path):
    command = ["train_tiny", "--data_url", nyu, "--batch_size", 4, "--stage", "coarse", "--max_steps", 2]
    leave_run(tmp_path / "Model", ("coarse",))
    shutil.rmtree(tmp_path / "Model" / "Ckpt")
    before = contents(tmp_path / "Model")
    result = forked(*command, cwd=tmp_path)
    assert result.returncode == 0 and result.stdout.count("moved the earlier run to ") == 1, result.stderr
    assert_nothing_is_lost(tmp_path / "Model", before)


def test_a_damaged_state_does_not_push_out_those_before_it(nyu, forked, tmp_path):
    """One state is to be kept, and a later one than the run's is there, which it has passed over."""
    command = ["train_tiny", "--data_url", nyu, "--batch_size", 4, "--stage", "coarse", "--save_checkpoint_steps", 1]
    assert forked(*command, "--max_steps", 4, cwd=tmp_path).returncode == 0
    checkpoints = tmp_path / "Model" / "Ckpt"
    (checkpoints / "CoarseNet_4.ckpt").write_bytes(b"damaged")
    result = forked(*command, "--max_steps", 3, "--resume", "--keep_checkpoint_max", 1, cwd=tmp_path)
    assert result.returncode == 0 and "falling back" in result.stdout, result.stderr
    result = forked(*command, "--max_steps", 4, "--resume", "--keep_checkpoint_max", 1, cwd=tmp_path)
    assert result.returncode == 0 and "resuming from Model/Ckpt/CoarseNet_3.ckpt" in result.stdout, result.stderr
    assert {path.name for path in checkpoints.iterdir()} == {"CoarseNet_4.ckpt", "FinalCoarseNet.ckpt"}
    checkpoint.load(checkpoints / "CoarseNet_4.ckpt")
