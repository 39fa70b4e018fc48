"""What a machine does to the commands: streams that are closed, what other programs export."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import BIN, onnx_nets, shell
from tests.fuzz import EXAMPLES, bounded

CLOSED = ("0<&-", "1>&-", "2>&-")


def path_without(folder, *names):
    """A folder for PATH with all programs of this machine but some."""
    folder.mkdir()
    for program in itertools.chain(BIN.iterdir(), *(Path(name).iterdir() for name in ("/usr/bin", "/bin"))):
        if program.name not in names and not (folder / program.name).is_symlink():
            (folder / program.name).symlink_to(program)
    return folder


@pytest.mark.long
@pytest.mark.parametrize("closed", [*CLOSED, " ".join(CLOSED)])
def test_a_prediction_without_standard_streams_is_whole(nyu, red_onnx, tmp_path, closed):
    nets = " ".join(map(str, onnx_nets(red_onnx)))
    result = shell(f"python $ROOT/predict.py --input {nyu}/Test --save color npy {nets} {closed}", tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    names = {path.name for path in (tmp_path / "predictions").iterdir()}
    assert names == {f"{n:05d}_colors{ending}" for n in range(4) for ending in ("_depth.png", "_depth.npy")}
    np.load(tmp_path / "predictions" / "00000_colors_depth.npy")  # nothing else has been written into it
    result = shell(f"python $ROOT/predict.py --input absent {nets} {closed}", tmp_path)
    assert result.returncode == 2 and "Traceback" not in result.stderr


HOSTILE = [
    {"HOME": None},
    {"HOME": "/proc"},
    {"XDG_CACHE_HOME": "/proc/x", "XDG_CONFIG_HOME": "/proc/x"},
    {"LANG": "C", "LC_ALL": "C"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LC_ALL": "xx_YY.no-such"},
    {"TMPDIR": "/nonexistent"},
    {"TERM": None},
    {"TZ": "No/Where"},
    {"COLUMNS": "1"},
    {"http_proxy": "http://127.0.0.1:9", "ALL_PROXY": "socks5://127.0.0.1:9"},
    {"MPLBACKEND": "nonsense"},
    {"MATPLOTLIBRC": "/proc/version", "MPLCONFIGDIR": "/proc/x"},
    {"PYTHONDONTWRITEBYTECODE": "1"},
    {"PYTHONWARNINGS": "always"},
    {"OMP_NUM_THREADS": "0"},
    {"CDPATH": "/"},
    {"IFS": "/"},
    {"PYTHONIOENCODING": "ascii"},
    {"OPENCV_IO_MAX_IMAGE_PIXELS": "10"},
    {"OPENCV_IO_MAX_IMAGE_WIDTH": "none"},
]


HELPS = ("train.py", "eval.py", "export.py", "predict.py", "app.py", "postprocess.py", "tools/make_sample_nyu.py")


COMMANDS = ["predict", "check", *(f"{name} --help" for name in HELPS)]


@pytest.mark.long
@settings(bounded, max_examples=max(8, EXAMPLES // 4))
@given(
    variables=st.lists(st.sampled_from(HOSTILE), max_size=4),
    closed=st.sets(st.sampled_from(CLOSED)),
    command=st.sampled_from(COMMANDS),
)
def test_environments(nyu, red_onnx, tmp_path_factory, variables, closed, command):
    folder = tmp_path_factory.mktemp("environment")
    nets = " ".join(map(str, onnx_nets(red_onnx)))
    line = {
        "predict": f"predict.py --input {nyu}/Test --save npy side --output_dir out {nets}",
        "check": f"tools/check_nyu.py {nyu} --output_dir out",
    }.get(command, command)
    merged = {name: value for one in variables for name, value in one.items()}
    result = shell(f"python $ROOT/{line} {' '.join(sorted(closed))}", folder, **merged)
    assert result.returncode == 0 and "Traceback" not in result.stdout + result.stderr, result.stdout + result.stderr
    made = {path.name for path in folder.glob("out/*")}
    assert len(made) == {"predict": 8, "check": 2}.get(command, 0)
    shutil.rmtree(folder)
