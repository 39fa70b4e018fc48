"""The training steps of the three nets, compiled and launched by MindSpore's own Ascend plugin on the emulator.

operators.json has what each step calls. After a change that is meant to call others, write it anew:
DEPTHNET_WRITE_OPERATORS=1 python -m pytest tests/ascend/test_graphs.py
"""

import json
import os
from pathlib import Path

import mindspore as ms
import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.long

STEP = "tests/ascend/step.py"
RECORD = Path(__file__).with_name("operators.json")
CALLS = ROOT / "tools" / "selfcheck" / "calls.json"
NETS = "coarse", "paper", "fine"
PRECISIONS = "O0", "O2"
RECORDED_VERSION = "2.10."  # graphs call other operators in another MindSpore
RECORDED = pytest.mark.skipif(
    not ms.__version__.startswith(RECORDED_VERSION), reason="operators.json is MindSpore 2.10's"
)


def steps_of(on_ascend, folder, *arguments, **settings):
    result = on_ascend(STEP, *arguments, cwd=folder, **settings)
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def steps(on_ascend, tmp_path_factory):
    """steps(soc): what step.py says of all nets: launched on 910B, compiled on 910A. One process each."""
    known = {}

    def steps_on(soc):
        if soc not in known:
            action = {"Ascend910B1": "launch", "Ascend910A": "compile"}[soc]
            known[soc] = steps_of(on_ascend, tmp_path_factory.mktemp(soc), action, *NETS, soc=soc)
            if os.environ.get("DEPTHNET_WRITE_OPERATORS"):
                record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
                RECORD.write_text(json.dumps({**record, soc: known[soc]}, indent=1) + "\n")
        return known[soc]

    return steps_on


@pytest.mark.parametrize("soc", ["Ascend910B1", "Ascend910A"])
def test_the_plugin_loads_and_knows_its_chip(steps, soc):
    assert steps(soc)["device"] == {"Ascend910B1": "ascend910b", "Ascend910A": "ascend910"}[soc]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("net", NETS)
class TestStep:
    @pytest.mark.parametrize("soc", ["Ascend910B1", "Ascend910A"])
    def test_no_tensor_is_float64(self, steps, soc, net, precision):
        assert "float64" not in steps(soc)[f"{net} {precision}"]["operators"]

    @RECORDED
    @pytest.mark.parametrize("soc", ["Ascend910B1", "Ascend910A"])
    def test_operators_are_the_recorded_ones(self, steps, soc, net, precision):
        recorded = json.loads(RECORD.read_text())[soc][f"{net} {precision}"]["operators"]
        assert steps(soc)[f"{net} {precision}"]["operators"] == recorded

    @RECORDED
    def test_host_waits_as_often_as_recorded(self, steps, net, precision):
        recorded = json.loads(RECORD.read_text())["Ascend910B1"][f"{net} {precision}"]
        step = steps("Ascend910B1")[f"{net} {precision}"]
        assert (step["launch_syncs"], step["wait_syncs"]) == (recorded["launch_syncs"], recorded["wait_syncs"])


def test_a_910b_compiles_by_the_graph_engine_unless_told(on_ascend, tmp_path):
    operators = steps_of(on_ascend, tmp_path, "compile", "fine:O2")["fine O2"]["operators"]
    assert "RefData" in operators and "ApplyAdamD" in operators and "float64" not in operators


# 16 cores are what the others see. FineNet's step is the one that compiles soonest.
def test_a_step_in_mixed_precision_compiles_with_four_cores(on_ascend, tmp_path):
    result = on_ascend(STEP, "launch", "fine:O2", cwd=tmp_path, cores=4)
    assert result.returncode == 0, result.stdout + result.stderr


def test_steps_compile_with_eight_cores_and_call_what_the_selfcheck_runs(on_ascend, tmp_path):
    listed = tmp_path / "calls.json"
    result = on_ascend("tools/selfcheck_calls.py", "list", "fine", "--output", listed, cwd=tmp_path, cores=8)
    assert result.returncode == 0, result.stdout + result.stderr
    calls = json.loads(listed.read_text())
    assert len(calls) > 100
    if ms.__version__.startswith(RECORDED_VERSION):
        known = json.loads(CALLS.read_text())
        assert [call for call in calls if call not in known] == []
