"""What train.py is asked: options that have no effect, the command to go on, --resume auto."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import typing

import pytest

from src.nets import checkpoint
from src.training.options import Options
from tests.conftest import ROOT
from tests.test_commands import one_line
from tests.test_overwrite import contents, leave_coarse_net


def test_the_help_the_dataclasses_and_the_document_have_the_same_groups_of_options(forked, tmp_path):
    sections = re.split(r"^(\w+):$", forked("train.py", "--help", cwd=tmp_path).stdout, flags=re.MULTILINE)
    of_help = {
        title: set(re.findall(r"^  --(\w+)", text, re.MULTILINE))
        for title, text in zip(sections[1::2], sections[2::2], strict=True)
        if title != "options"  # argparse's own group, of --help
    }
    classes = typing.get_type_hints(Options)
    assert of_help == {name: {field.name for field in dataclasses.fields(group)} for name, group in classes.items()}
    table = (ROOT / "docs/training.md").read_text().split("## Parameters")[1].split("\n## ")[0]
    groups = re.split(r"^\| \*\*(\w+)\*\* \|.*$", table, flags=re.MULTILINE)
    of_document = {
        title: re.findall(r"`--(\w+)`", "".join(row.split("|")[1] for row in text.splitlines() if row))
        for title, text in zip(groups[1::2], groups[2::2], strict=True)
    }
    assert {title: set(names) for title, names in of_document.items()} == of_help
    assert list(of_document) == list(of_help) == list(classes)
    assert all(len(names) == len(set(names)) for names in of_document.values())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--dropout 0.3", "--dropout has no effect here: it needs --coarse_net paper"),
        ("--stage fine --coarse_net default", "--coarse_net has no effect here: it needs --stage all or coarse"),
        ("--stage fine --epochs_coarse 20", "--epochs_coarse has no effect here: it needs --stage all or coarse"),
        ("--stage fine --learning_rate_coarse 1e-4", "--learning_rate_coarse has no effect here"),
        ("--stage fine --start imagenet", "--start has no effect here"),
        ("--stage fine --dense_lr_scale 0.1", "--dense_lr_scale has no effect here"),
        ("--stage coarse --fine_start random", "--fine_start has no effect here: it needs --stage all or fine"),
        ("--stage coarse --epochs_fine 10", "--epochs_fine has no effect here"),
        ("--stage coarse --learning_rate_fine 1e-5", "--learning_rate_fine has no effect here"),
        (
            "--start imagenet",
            "--start has no effect here: it needs --coarse_net paper and --stage all or coarse, without --pre_trained",
        ),
        ("--pre_trained x.ckpt --coarse_net paper --start random", "--start has no effect here"),
        ("--val_panels", "--val_panels has no effect here: it needs --val_data or --val_scenes"),
        ("--allow_changed_data", "--allow_changed_data has no effect here: it needs --resume"),
    ],
)
def test_an_option_that_has_no_effect_is_a_mistake(nyu, forked, tmp_path, arguments, line):
    assert line in one_line(forked("train.py", "--data_url", nyu, *arguments.split(), cwd=tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("predict.py --input . --save npy --colormap turbo", "--colormap has no effect here: it needs --save color"),
        ("predict.py --input . --save png16 ply --max_depth 5", "--max_depth has no effect here"),
        ("predict.py --input . --fov 60 --camera nyu", "--camera has no effect here: it needs neither --fov nor --fx"),
        (
            "predict.py --input . --coarse_onnx a.onnx --fine_onnx b.onnx --device_target Ascend",
            "--device_target has no effect here: it needs checkpoints, not --coarse_onnx",
        ),
        ("app.py --coarse_onnx a.onnx --fine_onnx b.onnx --fine_ckpt_model x", "--fine_ckpt_model has no effect here"),
        ("eval.py --compare a b --output_dir c", "--output_dir has no effect here: it needs --test_data"),
        ("eval.py --compare a b --flip_average", "--flip_average has no effect here"),
        ("export.py --coarse_or_fine fine --file_format ONNX --batch_size 1", "--batch_size has no effect here"),
        (
            "export.py --coarse_or_fine fine --file_format ONNX AIR --mindir_version native",
            "--mindir_version has no effect here: it needs --file_format MINDIR",
        ),
    ],
)
def test_an_option_of_another_command_that_has_no_effect_is_a_mistake(forked, tmp_path, command, line):
    assert line in one_line(forked(*command.split(), cwd=tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    ["--overw", "--res", "--resume yes", "--val_scenes 0.5 --val_data x", "--val_scenes 1", "--resume --overwrite"],
)
def test_what_is_no_option_or_no_value_of_one_is_named(nyu, forked, tmp_path, arguments):
    result = forked("train.py", "--data_url", nyu, *arguments.split(), cwd=tmp_path)
    assert result.returncode == 2 and arguments.split()[0] in result.stderr and "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_what_has_no_effect_does_not_bind_a_resume(nyu, forked, tmp_path):
    """A run of before, which was given such options, is gone on with without them."""
    leave_coarse_net(tmp_path / "Model" / "Ckpt" / "FinalCoarseNet.ckpt")
    command = ["train_tiny", "--data_url", nyu, "--batch_size", 4]
    of_fine = {"coarse_net": "paper", "start": "imagenet", "dropout": 0.3, "dense_lr_scale": 0.1}
    of_coarse = {"fine_start": "coarse", "dropout": 0.3}
    for more, file, given in (
        (["--stage", "fine"], "Model/Ckpt/FineNet_1.ckpt", of_fine),
        (["--stage", "coarse", "--train_url", "coarse"], "coarse/Ckpt/CoarseNet_1.ckpt", of_coarse),
    ):
        assert forked(*command, *more, "--max_steps", 1, cwd=tmp_path).returncode == 0
        saved = checkpoint.load(tmp_path / file)
        checkpoint.save(tmp_path / file, saved.arrays, {**saved.info, "options": {**saved.info["options"], **given}})
        result = forked(*command, *more, "--max_steps", 2, "--resume", cwd=tmp_path)
        assert result.returncode == 0 and "resuming from" in result.stdout, result.stderr
    line = one_line(
        forked(*command, "--stage", "fine", "--max_steps", 2, "--resume", "--fine_start", "coarse", cwd=tmp_path)
    )
    assert "fine_start was None, now 'coarse'" in line


@pytest.mark.long
def test_resume_auto_begins_goes_on_and_is_content_with_what_is_complete(nyu, forked, tmp_path):
    """One command line, killed again and again, each time a little later: it ends like a run that was never killed."""
    command = ["train_tiny", "--data_url", nyu, "--batch_size", 4, "--max_steps", 2, "--save_checkpoint_steps", 1]
    assert forked(*command, "--train_url", "unbroken", cwd=tmp_path).returncode == 0
    codes = []
    while 0 not in codes:
        result = forked(*command, "--resume", "auto", cwd=tmp_path, killed_at=6 + 8 * len(codes))
        codes.append(result.returncode)
        assert result.returncode in (0, 137) and len(codes) < 9, result.stderr
    assert len(codes) > 2
    ours, theirs = contents(tmp_path / "Model"), contents(tmp_path / "unbroken")
    assert {name for name in ours if name.endswith(".ckpt")} == {name for name in theirs if name.endswith(".ckpt")}
    assert all(ours[name] == theirs[name] for name in theirs if name.endswith(".ckpt"))
    result = forked(*command, "--resume=auto", cwd=tmp_path)
    assert result.returncode == 0 and result.stdout.count("complete at step 2") == 2
    assert all(contents(tmp_path / "Model")[name] == theirs[name] for name in theirs if name.endswith(".ckpt"))
    assert "seed was 0, now 1" in one_line(forked(*command, "--resume", "auto", "--seed", 1, cwd=tmp_path))
    for path in (tmp_path / "Model" / "Ckpt").glob("FineNet_*"):
        path.unlink()
    before = contents(tmp_path / "Model")
    line = one_line(forked(*command, "--resume", "auto", cwd=tmp_path))
    assert "FineNet_<step>.ckpt: --resume finds no state to resume from (found: FinalFineNet.ckpt, which are" in line
    assert contents(tmp_path / "Model") == before
    assert json.loads(before["Log/options.json"])["resume"] == "auto"


def stopped_command(command, cwd, environment, state):
    """Start the command, stop it by SIGTERM when it has written `state`; what it says is to be typed to go on."""
    process = subprocess.Popen(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    while not state.exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 143, output
    return output.split("to resume: ")[1].splitlines()[0]


@pytest.mark.long
def test_the_command_to_go_on_is_accepted(nyu, fine_stage, tmp_path):
    """From the script, with another Python than that on PATH, and a value with blanks and what looks like an option."""
    python = tmp_path / "my python" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    bare = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "DEVICE_TARGET", "VIRTUAL_ENV")}
    environment = {**bare, "PYTHON": str(python), "DEVICE_TARGET": "CPU"}
    folder = "a folder --overwrite it"
    arguments = [*fine_stage, "--batch_size", "1", "--save_checkpoint_steps", "1", "--overwrite", "--train_url", folder]
    resume = stopped_command(
        ["bash", ROOT / "scripts/run_standalone_train_ascend.sh", nyu, "0", *arguments],
        tmp_path,
        environment,
        tmp_path / folder / "Ckpt" / "FineNet_1.ckpt",
    )
    assert shlex.split(resume)[:2] == [f"PYTHON={python}", "DEVICE_TARGET=CPU"]
    (tmp_path / "nothing").mkdir()  # no python on this PATH
    for tool in ("bash", "dirname", "basename", "tee", "cat", "sh"):
        (tmp_path / "nothing" / tool).symlink_to(shutil.which(tool))
    result = subprocess.run(
        ["bash", "-c", f"{resume} --max_steps 1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**bare, "PATH": str(tmp_path / "nothing")},
        check=False,
    )
    assert result.returncode == 0 and "resuming from" in result.stdout, result.stdout + result.stderr
    assert resume.endswith("--resume") and resume.count("--overwrite") == 1


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["--overwrite", "--seed", "1"], ["--seed", "1", "--resume"]),
        (["--resume=auto"], ["--resume=auto"]),
        (["--resume", "auto"], ["--resume", "auto"]),
        (["--resume"], ["--resume"]),
        (["--train_url", "a --overwrite b"], ["--train_url", "a --overwrite b", "--resume"]),
    ],
)
@pytest.mark.parametrize("script", [False, True])
def test_the_command_to_go_on_is_what_was_typed_with_resume(monkeypatch, typed, expected, script):
    import train

    before = ["/a b/python", "-u", "train.py", "--data_url", "my data"]
    monkeypatch.setattr(sys, "orig_argv", [*before, *typed])
    if script:
        quoted = subprocess.run(
            ["bash", "-c", "printf '%q ' bash x.sh \"$@\"", "", *typed], capture_output=True, text=True, check=True
        ).stdout
        monkeypatch.setenv("DEPTHNET_COMMAND", quoted.rstrip())
        before = ["bash", "x.sh"]
    assert shlex.split(train.resume_command()) == [*before, *expected]


@pytest.mark.long
@pytest.mark.parametrize("recipe", sorted(path.name for path in (ROOT / "recipes").iterdir()))
def test_a_recipe_trains_two_steps_of_each_net(nyu, forked, tmp_path, recipe):
    result = forked(
        "train.py",
        f"@{ROOT / 'recipes' / recipe}",
        "--data_url",
        nyu,
        "--batch_size",
        2,
        "--max_steps",
        2,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "Model/Ckpt/CoarseNet_2.ckpt").exists() and (tmp_path / "Model/Ckpt/FineNet_2.ckpt").exists()


def test_a_file_of_options_that_is_not_there_is_named(nyu, forked, tmp_path):
    result = forked("train.py", "@mine.args", "--data_url", nyu, cwd=tmp_path)
    assert result.returncode == 2 and "mine.args" in result.stderr and "Traceback" not in result.stderr
