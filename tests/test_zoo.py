"""The model zoo's quick start as its users type it, in a copy of the repo with NYU in it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from src.nets import device
from src.nets.device import DeviceError, check_device_id, choose
from tests.conftest import ROOT
from tests.test_commands import FINAL_LINE, LOG_LINE, one_line
from tests.test_distributed import table

FEW = "--batch_size 1 --max_steps 1"
TRAINING = f"""
cd scripts
bash run_standalone_train_ascend.sh ../NYU 0 {FEW}
"""
SEQUENCE = """
bash run_eval.sh ../NYU
bash run_eval.sh ../NYU ../Model/Ckpt/FinalCoarseNet.ckpt ../Model/Ckpt/FinalFineNet.ckpt
bash run_export_coarse_model.sh
bash run_export_fine_model.sh
"""
DISTRIBUTED = f"""
bash run_distributed_train_ascend.sh ../NYU ~/rank_table_8pcs.json {FEW}
cd ..
python train.py --data_url NYU --device_id 0 --train_url Other {FEW} > train.log 2>&1 &
wait $!
"""


@pytest.fixture(scope="module")
def clone(nyu, tmp_path_factory):
    """The files of the repo as they are, somewhere else, with NYU and a home that has the rank table."""
    home = tmp_path_factory.mktemp("home")
    folder = home / "depthnet"
    for name in ("src", "web", "scripts", "tools", "weights", "ascend310_infer"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "build", "*.log"))
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    shutil.copytree(nyu, folder / "NYU")
    (home / "rank_table_8pcs.json").write_text(json.dumps(table(2)))
    return folder


def type_in(text, folder, **environment):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-e", "-c", text],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        env={**os.environ, "HOME": str(folder.parent), "PATH": path, "DEVICE_TARGET": "auto", **environment},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.long
def test_the_quick_start_of_the_model_zoo(clone, request):
    output = type_in(TRAINING, clone)
    assert output.splitlines()[0] == "no Ascend here: going to the CPU" and LOG_LINE.search(output)
    assert (clone / "Model" / "Ckpt" / "FinalFineNet.ckpt").is_file() and not (clone / "scripts" / "Model").exists()
    output = type_in("cd scripts" + SEQUENCE, clone)
    assert len(FINAL_LINE.findall(output)) == 4
    assert (clone / "Model" / "MindIR" / "FinalFineNet.mindir").is_file()
    if shutil.which("c++"):
        home = request.getfixturevalue("lite")
        output = type_in(
            "cd scripts; bash run_infer_310.sh ../Model/MindIR/FinalCoarseNet.mindir "
            "../Model/MindIR/FinalFineNet.mindir ../NYU/Test/ 0",
            clone,
            MS_LITE_HOME=home,
        )
        assert FINAL_LINE.search(output) and (clone / "scripts" / "acc.log").is_file()
    output = type_in("cd scripts" + DISTRIBUTED, clone)
    assert "no Ascend here: going to the CPU" in output or "2 workers" in output
    names = {path.name for path in (clone / "Model" / "Ckpt").iterdir()}
    assert {
        "FinalCoarseNet.ckpt",
        "FinalCoarseNet_rank0.ckpt",
        "FinalFineNet_rank0.ckpt",
        "CoarseNet_1.ckpt",
        "CoarseNet_1_rank0.ckpt",
    } <= names
    assert "training finished" in (clone / "train.log").read_text()


@pytest.mark.long
def test_after_a_distributed_run_the_commands_find_its_weights_and_say_so(clone):
    for path in [*(clone / "Model" / "Ckpt").glob("Final*Net.ckpt"), *(clone / "Model").glob("MindIR/*")]:
        path.unlink()
    output = type_in("cd scripts" + SEQUENCE.replace("bash run_eval.sh ../NYU ../Model", ": "), clone)
    assert output.count("FinalCoarseNet_rank0.ckpt") >= 2 and output.count("FinalFineNet_rank0.ckpt") >= 2
    assert len(FINAL_LINE.findall(output)) == 2 and (clone / "Model" / "MindIR" / "FinalCoarseNet.mindir").is_file()


def test_a_chip_that_mindspore_cannot_use_is_not_passed_over():
    assert choose("auto", lambda target: target == "Ascend") == "Ascend"
    assert choose("auto", lambda target: target == "CPU") == "CPU"
    with pytest.raises(DeviceError, match=r"/dev/davinci0 is there, but MindSpore .*set_env\.sh"):
        choose("auto", lambda target: target == "CPU", ["/dev/davinci0"])
    assert choose("CPU", lambda target: target == "CPU", ["/dev/davinci0"]) == "CPU"


def test_a_device_that_is_not_there_is_named_early():
    check_device_id(7, 8)
    with pytest.raises(DeviceError, match="--device_id 8: expected 0 to 7: there are 8 devices"):
        check_device_id(8, 8)


def test_why_an_ascend_cannot_be_used_is_said(nyu, forked, tmp_path):
    if device.ms.device_context.ascend.is_available():
        pytest.skip("there is one")
    line = one_line(forked("train.py", "--data_url", nyu, "--device_target", "Ascend", cwd=tmp_path))
    assert re.search(r"cannot use it \(.*lib\w+\.so.*\); expected CPU", line)


def test_a_driver_that_fails_is_one_line_and_a_dry_run_asks_none(monkeypatch):
    chosen = []

    def fail():
        raise RuntimeError("Get device count failed, ret = 507033\n\nC++ Call Stack:\n...")

    monkeypatch.setattr(device.ms.device_context.ascend, "is_available", lambda: True)
    monkeypatch.setattr(device.ms.device_context.ascend, "device_count", fail)
    monkeypatch.setattr(device.ms, "set_device", lambda *arguments: chosen.append(arguments))
    with pytest.raises(DeviceError) as caught:
        device.select("Ascend", 0)
    assert str(caught.value) == "--device_target Ascend --device_id 0: Get device count failed, ret = 507033"
    monkeypatch.setenv("MS_SIMULATION_LEVEL", "1")
    assert device.select("Ascend", 0).target == "Ascend" and chosen == [("Ascend", 0)]


@pytest.mark.parametrize(
    ("target", "level", "asked"),
    [
        ("Ascend", "auto", "O2"),
        ("Ascend", "O0", "O0"),
        ("Ascend", None, None),
        ("CPU", "O1", "O1"),
        ("CPU", "auto", None),
    ],
)
def test_the_jit_level_is_the_device_s_unless_told(monkeypatch, target, level, asked):
    settings = {}
    monkeypatch.setattr(device.ms.device_context.ascend, "is_available", lambda: True)
    monkeypatch.setattr(device.ms.device_context.ascend, "device_count", lambda: 8)
    monkeypatch.setattr(device.ms, "set_device", lambda *_: None)
    monkeypatch.setattr(device.ms, "set_context", lambda **options: settings.update(options))
    device.select(target, 0, level)
    assert settings.pop("mode") == device.ms.GRAPH_MODE
    assert settings == ({"jit_config": {"jit_level": asked}} if asked else {})


def test_the_build_for_ascend_does_not_take_the_wheel_for_cpu(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in ("MS_LITE_HOME", "LITE_HOME")}
    result = subprocess.run(
        ["bash", ROOT / "ascend310_infer" / "build.sh"],
        capture_output=True,
        text=True,
        check=False,
        env={**environment, "DEVICE_TARGET": "Ascend", "BUILD_DIR": str(tmp_path)},
    )
    assert result.returncode == 2 and "set MS_LITE_HOME to an unpacked MindSpore Lite for Ascend" in result.stderr


def test_an_old_compiler_is_named(tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    result = subprocess.run(
        ["bash", ROOT / "ascend310_infer" / "build.sh"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CXX": str(compiler), "BUILD_DIR": str(tmp_path / "build")},
    )
    assert result.returncode == 2 and "expected GCC 7.3 or later" in result.stderr


def test_scripts_are_free_of_what_bash_4_2_lacks():
    """MindSpore's supported systems have bash 4.2: wait -n, ${x@Q}, and empty arrays under set -u are later."""
    for path in (ROOT / "scripts").glob("*.sh"):
        text = "\n".join(line.split("#")[0] for line in path.read_text().splitlines())
        assert "wait -n" not in text and "@Q}" not in text and "declare -g -n" not in text, path
