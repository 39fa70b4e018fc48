"""tools/ascend_selfcheck.py: what goes wrong is said, and hides nothing. That all is right takes minutes: run it."""

import numpy as np
import pytest

from src.base.errors import CheckFailed
from tools import ascend_selfcheck as selfcheck


def test_programs_that_take_too_long_are_rows_of_the_table(run, tmp_path):
    result = run("tools/ascend_selfcheck.py", "--device_target", "CPU", "--limit", 1, cwd=tmp_path)
    table = (tmp_path / "ascend_selfcheck.txt").read_text().splitlines()[-13:]
    assert result.returncode == 1, result.stdout + result.stderr
    assert [line.split()[0] for line in table] == ["right"] + 11 * ["WRONG"] + ["not"]
    assert any("not done in 1 s" in line for line in table)
    assert "Traceback" not in result.stderr


@pytest.fixture
def host(tmp_path):
    with open(tmp_path / "report.txt", "w") as report:
        yield selfcheck.Host("CPU", 0, 60, report, tmp_path)


@pytest.mark.parametrize(("factor", "state"), [(1.0, "right"), (1.002, "right"), (1.1, "WRONG"), (np.nan, "WRONG")])
def test_a_layer_that_differs_from_the_cpu_is_wrong(host, factor, state):
    array = np.linspace(-1, 1, 100, dtype=np.float32)
    np.savez(host.folder / "layers_CPU_O0.npz", first=array, second=array)
    host.target = "Ascend"
    np.savez(host.folder / "layers_Ascend_O0.npz", first=array, second=array * np.float32(factor))
    row = selfcheck.run_check(host, "layers, O0", lambda: selfcheck.check_layers(host, "O0"))
    assert row.state == state and (state == "right" or "second" in row.remark)


def test_a_program_that_fails_says_its_last_line(host):
    with pytest.raises(CheckFailed, match="exit code 3: the last"):
        host.run("sh", "-c", "echo first; echo the last; exit 3")
