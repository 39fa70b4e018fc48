"""The types of src/, tools/ and the commands, as pyproject.toml asks for them."""

import subprocess
import sys

from tests.conftest import ROOT


def test_the_types_hold():
    (ROOT / "src" / "page.pyi").unlink(missing_ok=True)  # of Gradio; mypy would read it instead
    command = [sys.executable, "-m", "mypy", "--no-incremental"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
