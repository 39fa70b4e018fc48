"""What every command does with its arguments and its standard streams."""

import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT, shell
from tests.test_commands import one_line


@pytest.mark.parametrize("program", ["postprocess.py", "tools/check_nyu.py"])
def test_a_screen_that_cannot_be_written_is_no_success(nyu, forked, tmp_path, program):
    assert forked("preprocess.py", "--dataset_path", nyu, cwd=tmp_path).returncode == 0
    (tmp_path / "result_Files").mkdir()
    for path in (tmp_path / "preprocess_Result" / "label").iterdir():
        np.log(np.fromfile(path, np.float32)).tofile(tmp_path / "result_Files" / f"{path.stem}_0.bin")
    arguments = [str(nyu)] if program.startswith("tools") else []
    for target in ("/dev/full", "closed"):
        with open("/dev/full", "w") as full:
            redirect = full if target == "/dev/full" else subprocess.PIPE
            process = subprocess.Popen(
                [sys.executable, str(ROOT / program), *arguments],
                cwd=tmp_path,
                stdout=redirect,
                stderr=subprocess.PIPE,
                text=True,
            )
            if process.stdout:
                process.stdout.close()
            errors = process.stderr.read()
            assert process.wait() == 1, errors
            assert "standard output could not be written" in errors and "Traceback" not in errors, errors


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["train.py", "--data_url", "x", "--seed", "4294967296"],
            "4294967296 is not a whole number from 0 to 4294967295",
        ),
        (
            ["predict.py", "--input", "x", "--fx", "0", "--fy", "1", "--cx", "1", "--cy", "1"],
            "0 is not a number above 0",
        ),
        (
            ["predict.py", "--input", "x", "--fx", "1", "--fy", "1", "--cx", "nan", "--cy", "1"],
            "nan is not a finite number",
        ),
    ],
)
def test_numbers_out_of_range_are_said(forked, tmp_path, arguments, text):
    result = forked(*arguments, cwd=tmp_path)
    assert result.returncode == 2 and text in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("program", ["train.py", "eval.py", "predict.py", "export.py", "tools/check_nyu.py"])
def test_help_names_no_default_that_is_none(forked, tmp_path, program):
    text = forked(program, "--help", cwd=tmp_path).stdout
    assert "default: None" not in text and "default: False" not in text and "default:" in text.replace("\n", " ")


def test_a_current_folder_that_is_gone_is_said(nyu, tmp_path):
    result = shell(f"mkdir gone && cd gone && rmdir ../gone && python $ROOT/eval.py --test_data {nyu}", tmp_path)
    assert "the current folder is gone" in one_line(result)
