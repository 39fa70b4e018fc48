"""Files that are written: whole or not at all, with the user's rights, on file systems of any kind."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT, onnx_nets


@pytest.mark.parametrize("command", ["train", "predict", "export", "preprocess"])
def test_a_user_s_file_that_has_the_name_of_a_probe_stays(
    nyu, weights, red_onnx, fine_stage, forked, tmp_path, command
):
    folder = {"train": "Model/Ckpt", "predict": "out", "export": "out/MindIR", "preprocess": "out/img_data"}[command]
    probe = tmp_path / folder / ".write-test"
    probe.parent.mkdir(parents=True)
    probe.write_text("mine")
    arguments = {
        "train": ["train.py", "--data_url", nyu, *fine_stage, "--batch_size", 8, "--max_steps", 1],
        "predict": [
            "predict.py",
            "--input",
            nyu / "Test" / "00000_colors.png",
            "--output_dir",
            "out",
            *onnx_nets(red_onnx),
        ],
        "export": [
            "export.py",
            "--coarse_or_fine",
            "fine",
            "--ckpt_file",
            weights / "fine.ckpt",
            "--output_dir",
            "out",
        ],
        "preprocess": ["preprocess.py", "--dataset_path", nyu, "--output_path", "out"],
    }[command]
    result = forked(*arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert probe.read_text() == "mine"


def test_files_have_the_mode_that_the_user_asks_for(nyu, forked, tmp_path):
    for mask, mode in ((0o077, 0o600), (0o022, 0o644)):
        out = tmp_path / oct(mask)
        command = (
            f"umask {mask:04o} && exec {sys.executable} {ROOT}/preprocess.py --dataset_path {nyu} --output_path {out}"
        )
        subprocess.run(["bash", "-c", command], check=True, capture_output=True)
        assert {path.stat().st_mode & 0o777 for path in out.rglob("*.bin")} == {mode}


FSYNC = """
import os, runpy, sys
flush, answer, of_folders = os.fsync, int(sys.argv[1]), sys.argv[2] == "folders"
def fsync(descriptor):
    if os.path.isdir(f"/proc/self/fd/{descriptor}") == of_folders:
        raise OSError(answer, os.strerror(answer))
    flush(descriptor)
os.fsync = fsync
sys.argv = sys.argv[3:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("answer", "of", "code"),
    [
        ("EINVAL", "folders", 0),
        ("ENOTSUP", "folders", 0),
        ("EACCES", "folders", 0),
        ("EIO", "folders", 1),
        ("EIO", "files", 1),
        ("EINVAL", "files", 1),
    ],
)
def test_a_folder_that_cannot_be_flushed_is_no_failure(nyu, red_onnx, tmp_path, answer, of, code):
    import errno

    command = [
        sys.executable,
        "-c",
        FSYNC,
        getattr(errno, answer),
        of,
        ROOT / "predict.py",
        "--input",
        nyu / "Test" / "00000_colors.png",
        "--save",
        "npy",
        *onnx_nets(red_onnx),
    ]
    result = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == code and ("1 predicted" in result.stdout) == (code == 0), result.stdout + result.stderr
