"""Fixtures: a small NYU folder that the tests make themselves, and the real commands as subprocesses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import mindspore as ms  # noqa: E402

import src  # noqa: E402, F401 (sets the environment that MindSpore reads)
from tools import make_sample_nyu  # noqa: E402

ms.set_context(mode=ms.GRAPH_MODE)
ms.set_device("CPU")


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory):
    """What programs keep in the user's cache goes elsewhere."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def nyu(tmp_path_factory):
    """A NYU folder of rendered rooms: 2 scenes of 4 training pairs, 4 test pairs. Not to be changed."""
    folder = tmp_path_factory.mktemp("data") / "NYU"
    make_sample_nyu.make(folder, scenes=2, pairs_per_scene=4, test_pairs=4, seed=1)
    return folder


@pytest.fixture(scope="session")
def run():
    """Run a command of the repo in a folder: run("train.py", ..., cwd=folder) -> CompletedProcess with text."""
    def run_command(program, *arguments, cwd, **environment):
        launcher = ["bash"] if str(program).endswith(".sh") else [sys.executable]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run([*launcher, str(ROOT / program), *map(str, arguments)], cwd=cwd, text=True, timeout=900,
                              capture_output=True, env={**os.environ, "PATH": path, **environment}, check=False)

    return run_command


@pytest.fixture(scope="session")
def trained(nyu, run, tmp_path_factory):
    """The folder in which `train.py` has trained both nets for a few steps, and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    result = run("train.py", "--data_url", nyu, "--val_data", nyu, "--batch_size", 2, "--epochs_coarse", 3,
                 "--epochs_fine", 1, "--learning_rate_fine", 1e-3, "--save_checkpoint_steps", 5, cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    folder.joinpath("stdout.txt").write_text(result.stdout)
    return folder
