"""Files that are written: whole or not at all, with the user's rights, on file systems of any kind."""

import errno

import pytest

from tests.conftest import onnx_nets, shell


@pytest.mark.parametrize(
    ("line", "folder"),
    [
        ("train_tiny --data_url {nyu} --batch_size 8 --max_steps 1", "Model/Ckpt"),
        ("predict.py --input {nyu}/Test/00000_colors.png --output_dir out {onnx}", "out"),
        ("export.py --coarse_or_fine fine --ckpt_file {untrained}/fine.ckpt --output_dir out", "out/MindIR"),
        ("preprocess.py --dataset_path {nyu} --output_path out", "out/img_data"),
    ],
)
def test_a_user_s_file_that_has_the_name_of_a_probe_stays(nyu, untrained, red_onnx, forked, tmp_path, line, folder):
    probe = tmp_path / folder / ".write-test"
    probe.parent.mkdir(parents=True)
    probe.write_text("mine")
    names = {"nyu": nyu, "untrained": untrained, "onnx": " ".join(map(str, onnx_nets(red_onnx)))}
    result = forked(line.format(**names), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert probe.read_text() == "mine"


@pytest.mark.long
def test_files_have_the_mode_that_the_user_asks_for(nyu, tmp_path):
    for mask, mode in (("0077", 0o600), ("0022", 0o644)):
        line = f"preprocess.py --dataset_path {nyu} --output_path {mask}"
        assert shell(f"umask {mask} && python $ROOT/{line}", tmp_path).returncode == 0
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / mask).rglob("*.bin")} == {mode}


FSYNC = """
import os
flush = os.fsync
def fsync(descriptor):
    if os.path.isdir(f"/proc/self/fd/{descriptor}") == of_folders:
        raise OSError(answer, os.strerror(answer))
    flush(descriptor)
os.fsync = fsync
"""


@pytest.mark.parametrize(
    ("answer", "of_folders", "code"),
    [
        ("EINVAL", True, 0),
        ("ENOTSUP", True, 0),
        ("EACCES", True, 0),
        ("EIO", True, 1),
        ("EIO", False, 1),
        ("EINVAL", False, 1),
    ],
)
def test_a_folder_that_cannot_be_flushed_is_no_failure(nyu, red_onnx, run, tmp_path, answer, of_folders, code):
    before = f"answer, of_folders = {getattr(errno, answer)}, {of_folders}" + FSYNC
    line = f"predict.py --input {nyu}/Test/00000_colors.png --save npy"
    result = run(line, *onnx_nets(red_onnx), cwd=tmp_path, before=before)
    assert result.returncode == code and ("1 predicted" in result.stdout) == (code == 0), result.stdout + result.stderr
