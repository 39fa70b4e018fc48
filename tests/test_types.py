"""The types of src/, tools/, web/ and the commands, as pyproject.toml asks for them."""

import shutil
import subprocess
import sys

from tests.conftest import ROOT


def test_the_types_hold(tmp_path):
    """In a copy without what Gradio lays beside the page: mypy would read that instead."""
    for name in ("src", "tools", "web"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.pyi", "__pycache__"))
    for path in [*ROOT.glob("*.py"), ROOT / "pyproject.toml"]:
        shutil.copy(path, tmp_path)
    command = [sys.executable, "-m", "mypy", "--no-incremental"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
