"""What every command does with its arguments and its standard streams."""

import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT, shell
from tests.test_commands import one_line


@pytest.mark.parametrize("program", ["postprocess.py", "tools/check_nyu.py"])
def test_a_screen_that_cannot_be_written_is_no_success(nyu, preprocessed, tmp_path, program):
    (tmp_path / "results").mkdir()
    for path in (preprocessed / "label").iterdir():
        np.log(np.fromfile(path, np.float32)).tofile(tmp_path / "results" / f"{path.stem}_0.bin")
    scored = ["--result_path", "results", "--label_file", preprocessed / "label"]
    command = [sys.executable, ROOT / program, *([nyu] if program.startswith("tools") else scored)]
    for closed in (False, True):
        with open("/dev/full", "w") as full:
            redirect = subprocess.PIPE if closed else full
            process = subprocess.Popen(command, cwd=tmp_path, stdout=redirect, stderr=subprocess.PIPE, text=True)
            if closed:
                process.stdout.close()
            errors = process.stderr.read()
            assert process.wait() == 1, errors
            assert "standard output could not be written" in errors and "Traceback" not in errors, errors


def test_numbers_out_of_range_are_said(forked, tmp_path):
    """As in test_predict.py; here of an option with a largest number."""
    result = forked("train.py --data_url x --seed 4294967296", cwd=tmp_path)
    assert "4294967296 is not a whole number from 0 to 4294967295" in result.stderr and result.returncode == 2


@pytest.mark.long
def test_a_current_folder_that_is_gone_is_said(nyu, tmp_path):
    result = shell(f"mkdir gone && cd gone && rmdir ../gone && python $ROOT/eval.py --test_data {nyu}", tmp_path)
    assert "the current folder is gone" in one_line(result)
