"""The style of the code: types, lint and format, as pyproject.toml, .clang-format and .shellcheckrc ask for them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

BIN = Path(sys.executable).parent


def sources(*endings):
    folders = [ROOT / name for name in ("ascend310_infer", "scripts", "tests")]
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in endings]
    return [path for path in files if "build" not in path.parts]


CHECKS = {
    "lint": ["ruff", "check", "--no-cache", ROOT],
    "format": ["ruff", "format", "--no-cache", "--check", "--diff", ROOT],
    "format of C++": ["clang-format", "--dry-run", "--Werror", *sources(".c", ".cc", ".h")],
    "shell": ["shellcheck", ROOT / ".ci" / "run", *sources(".sh")],
}


@pytest.mark.parametrize("check", CHECKS)
def test_style(check):
    program, *arguments = CHECKS[check]
    result = subprocess.run([BIN / program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.long
def test_types(tmp_path):
    """In a copy without the stubs that Gradio writes beside the page: mypy would read those instead."""
    for name in ("src", "tools", "web"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.pyi", "__pycache__"))
    for path in [*ROOT.glob("*.py"), ROOT / "pyproject.toml"]:
        shutil.copy(path, tmp_path)
    command = [sys.executable, "-m", "mypy", "--no-incremental"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
