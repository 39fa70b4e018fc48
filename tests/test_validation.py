"""What is scored after each epoch: training scenes that are held out, and a Test folder."""

import csv
import shutil

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.data import listing, packed, plain
from src.nets import checkpoint
from src.nets.nets import Nets
from src.training import validation
from tests.test_commands import one_line
from tests.test_data_loader import break_picture
from tests.test_distributed import start, table, write
from tests.test_overwrite import contents, leave_coarse_net, leave_run

TINY = ["--batch_size", 2, "--stage", "coarse", "--learning_rate_coarse", 1e-3]


def abs_rel(prediction_m, target_m):
    measured = target_m > 0
    target_m, prediction_m = target_m[measured].clip(0.1, 10), prediction_m[measured].clip(0.1, 10)
    return np.mean(np.abs(prediction_m - target_m) / target_m)


def logged(path):
    with open(path, newline="") as file:
        return [float(row["abs_rel"]) for row in csv.DictReader(file) if row["abs_rel"]]


@pytest.fixture(scope="module")
def scenes(nyu, tmp_path_factory):
    """The same pictures as three scenes: one in two parts of two pairs, two of two pairs."""
    folder = tmp_path_factory.mktemp("scenes") / "NYU"
    names = iter(("den_0001a_out", "den_0001b_out", "den_0002_out", "hall_0001_out"))
    pairs = listing.list_train(nyu)
    for first in range(0, 8, 2):
        scene = folder / "Train" / next(names)
        scene.mkdir(parents=True)
        for pair in pairs[first : first + 2]:
            shutil.copy(pair.rgb, scene)
            shutil.copy(pair.depth, scene)
    return folder


@pytest.fixture(scope="module")
def trained(scenes, forked, tmp_path_factory):
    """The folder in which a small CoarseNet was trained for two epochs, one of three scenes held out."""
    folder = tmp_path_factory.mktemp("trained")
    result = forked("train_tiny", "--data_url", scenes, *TINY, "--val_scenes", 0.3, "--epochs_coarse", 2, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "held out for validation: 1 of 3 scenes, " in result.stdout
    return folder


def test_whole_scenes_are_held_out_by_the_seed(caplog):
    names = [
        f"{scene}_out/{number}"
        for scene in ("den_0001a", "den_0001b", *(f"hall_{n:04d}" for n in range(9)))
        for number in range(3)
    ]
    chosen = set()
    for seed in range(20):
        for share, count in ((0.001, 1), (0.3, 3), (0.99, 9)):
            train, held = validation.split_scenes(names, share, seed)
            assert sorted(train + held) == list(range(33)) and train == sorted(train) and held == sorted(held)
            parts = [{names[index].split("_out")[0].rstrip("ab") for index in part} for part in (train, held)]
            assert not parts[0] & parts[1] and len(parts[1]) == count
            assert (train, held) == validation.split_scenes(names, share, seed)
        chosen.add(tuple(held))
    assert len(chosen) > 3


@pytest.mark.long
def test_what_is_held_out_is_scored_and_not_trained_on(scenes, trained, forked, tmp_path):
    """The score against NumPy and PyTorch; the weights against a training on a folder without that scene."""
    source = plain.PlainPairs(scenes)
    train, held = validation.split_scenes(source.names, 0.3, 0)
    weights = checkpoint.load(trained / "Model/Ckpt/FinalCoarseNet.ckpt").arrays
    loaded = [source.load(index) for index in held]
    rgb = torch.from_numpy(np.stack([rgb for rgb, _ in loaded]).transpose(0, 3, 1, 2).astype(np.float32) / 255)
    log_depth = torch.nn.functional.conv2d(
        rgb, *map(torch.from_numpy, (weights["conv.weight"], weights["conv.bias"])), stride=4
    )
    expected = np.mean(
        [abs_rel(np.exp(one[0].numpy()), depth_m) for one, (_, depth_m) in zip(log_depth, loaded, strict=True)]
    )
    scores = logged(trained / "Model/Log/coarse.csv")
    assert len(scores) == 2 and scores[-1] == pytest.approx(expected, abs=1e-5)
    assert checkpoint.load(trained / "Model/Ckpt/BestCoarseNet.ckpt").info["abs_rel"] == pytest.approx(min(scores))
    for index in train:
        target = tmp_path / "NYU" / source.pairs[index].rgb.relative_to(scenes).parent
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(source.pairs[index].rgb, target)
        shutil.copy(source.pairs[index].depth, target)
    result = forked("train_tiny", "--data_url", "NYU", *TINY, "--epochs_coarse", 2, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    alone = checkpoint.load(tmp_path / "Model/Ckpt/FinalCoarseNet.ckpt").arrays
    for name in weights:
        np.testing.assert_array_equal(weights[name], alone[name])


@pytest.mark.long
def test_a_packed_set_holds_the_same_scenes_out_and_a_resume_is_exact(scenes, trained, forked, tmp_path):
    """Begun on the files, gone on with on the packed set: the same files as those of the unbroken run."""
    packed.pack(scenes, tmp_path / "set", 2)
    command = ["train_tiny", *TINY, "--val_scenes", 0.3]
    result = forked(*command, "--data_url", scenes, "--epochs_coarse", 1, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    line = one_line(forked(*command, "--data_url", scenes, "--val_scenes", 0.2, "--resume", cwd=tmp_path))
    assert "val_scenes was 0.3, now 0.2" in line
    result = forked(*command, "--data_url", "set", "--epochs_coarse", 2, "--resume", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    ours, theirs = contents(tmp_path / "Model"), contents(trained / "Model")
    assert all(ours[name] == theirs[name] for name in theirs if name.endswith(".ckpt"))
    assert logged(tmp_path / "Model/Log/coarse.csv") == logged(trained / "Model/Log/coarse.csv")
    for more in (["--augmentation", "paper"], ["--loss", "scale_invariant"]):  # other ways into the set
        scores = []
        for data in (scenes, "set"):
            result = forked(
                *command,
                *more,
                "--data_url",
                data,
                "--epochs_coarse",
                1,
                "--overwrite",
                "--tensorboard",
                "--val_panels",
                cwd=tmp_path,
            )
            assert result.returncode == 0 and "warning" not in result.stdout, result.stdout + result.stderr
            scores.append(logged(tmp_path / "Model/Log/coarse.csv"))
            assert (tmp_path / "Model/Log/coarse_panels.png").stat().st_size > 10_000
        assert scores[0] == scores[1] and len(scores[0]) == 1


@pytest.mark.long
def test_a_broken_picture_among_those_held_out_is_named_at_the_start(scenes, forked, tmp_path):
    folder = shutil.copytree(scenes, tmp_path / "NYU")
    pairs = listing.list_train(folder)
    _, held = validation.split_scenes([pair.name for pair in pairs], 0.3, 0)
    break_picture(pairs[held[1]].rgb)
    command = ["train_tiny", "--data_url", "NYU", *TINY, "--val_scenes", 0.3, "--epochs_coarse", 1]
    assert f"{pairs[held[1]].rgb.name}: broken image" in one_line(forked(*command, cwd=tmp_path))
    assert not (tmp_path / "Model").exists()
    result = forked(*command, "--bad_samples", "skip", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("bad sample, left out of the validation: ") == 1
    for scene in ("den_0001a_out", "den_0001b_out", "den_0002_out"):
        shutil.rmtree(folder / "Train" / scene)
    assert "--val_scenes: 1 scene of training pairs: expected two or more" in one_line(
        forked(*command, "--train_url", "new", cwd=tmp_path)
    )


@pytest.mark.long
def test_two_workers_score_the_scenes_that_are_held_out(nyu, fine_stage, tmp_path):
    """In place of an earlier run of theirs, beside one that is not theirs."""
    replaced = leave_run(tmp_path / "Model", ("fine",), "_rank0")
    alone = leave_run(tmp_path / "Model", ("coarse", "fine"))
    before = contents(tmp_path / "Model")
    process = start(
        [
            nyu,
            write(tmp_path / "table.json", table(2)),
            *fine_stage,
            "--batch_size",
            1,
            "--max_steps",
            2,
            "--val_scenes",
            0.5,
            "--overwrite",
        ],
        tmp_path,
    )
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0 and "1 of 2 scenes, 4 of 8 pairs" in output, output + errors
    (moved,) = (tmp_path / "Model").glob("replaced-*")
    assert contents(moved) == {name: before[name] for name in replaced}
    now = contents(tmp_path / "Model")
    assert all(now[name] == before[name] for name in alone)
    source = plain.PlainPairs(nyu)
    _, held = validation.split_scenes(source.names, 0.5, 0)
    predict = Nets(fine_stage[-1], tmp_path / "Model/Ckpt/FinalFineNet_rank0.ckpt")
    loaded = [source.load(index) for index in held]
    rgb = np.stack([rgb for rgb, _ in loaded]).transpose(0, 3, 1, 2).astype(np.float32) / 255
    expected = np.mean(
        [abs_rel(np.exp(one[0]), depth_m) for one, (_, depth_m) in zip(predict(rgb)["FineNet"], loaded, strict=True)]
    )
    assert logged(tmp_path / "Model/Log/fine_rank0.csv") == [pytest.approx(expected, abs=1e-5)]


@pytest.mark.long
def test_who_chooses_on_the_test_part_is_told(nyu, forked, tmp_path):
    leave_coarse_net(tmp_path / "Model" / "Ckpt" / "FinalCoarseNet.ckpt")
    result = forked(
        "train_tiny",
        "--data_url",
        nyu,
        "--val_data",
        nyu,
        "--stage",
        "fine",
        "--epochs_fine",
        0,
        "--batch_size",
        2,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert f"Best*Net.ckpt will be chosen on the Test part of {nyu}" in result.stdout
    assert "--val_scenes 0.1" in result.stdout


@pytest.mark.long
def test_tensorboard_shows_the_rate_of_each_step_that_is_logged(nyu, forked, tmp_path):
    result = forked(
        "train_tiny",
        "--data_url",
        nyu,
        *TINY,
        "--max_steps",
        31,
        "--lr_schedule",
        "cosine",
        "--warmup_steps",
        15,
        "--tensorboard",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    events = EventAccumulator(str(tmp_path / "Model/Log/tensorboard/coarse"))
    events.Reload()
    rates = {event.step: event.value for event in events.Scalars("coarse/learning_rate")}
    assert rates == {
        step: pytest.approx(5e-4 * min(step / 15, 1) * (1 + np.cos(np.pi * (step - 1) / 31)), rel=1e-5)
        for step in (1, 10, 20, 30)
    }
