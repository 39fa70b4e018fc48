"""The commands and scripts, typed as a user with an Ascend types them, on the emulator."""

import json
import shutil

import pytest

pytestmark = pytest.mark.long

GRAPH_ENGINE, KERNEL_BY_KERNEL = "RefData", "aclnnAdd"  # an operator that only this backend calls
AT_O0 = "--jit_level", "O0"  # at O2, which training takes by itself, the first test alone takes four minutes


def tail(result):
    return (result.stdout + result.stderr)[-3000:]


@pytest.fixture(scope="module")
def trained_on_ascend(on_ascend, nyu, tmp_path_factory):
    """The folder in which the script has trained both nets for a step, and what it printed."""
    folder = tmp_path_factory.mktemp("standalone")
    result = on_ascend(
        "scripts/run_standalone_train_ascend.sh", nyu, 1, *AT_O0, "--batch_size", 2, "--max_steps", 1, cwd=folder
    )
    return folder, result


@pytest.fixture
def fine_stage(trained_on_ascend):
    """train.py's arguments for a step of FineNet on that CoarseNet."""
    folder, _ = trained_on_ascend
    return [
        *AT_O0,
        "--batch_size",
        2,
        "--max_steps",
        1,
        "--stage",
        "fine",
        "--pre_trained",
        folder / "Model" / "Ckpt" / "FinalCoarseNet.ckpt",
    ]


@pytest.fixture
def rank_table(tmp_path):
    """The file of a server with two devices, 2 and 3."""
    devices = [
        {"device_id": str(2 + rank), "device_ip": f"192.1.0.{rank + 1}", "rank_id": str(rank)} for rank in (0, 1)
    ]
    path = tmp_path / "rank_table.json"
    path.write_text(
        json.dumps(
            {
                "version": "1.0",
                "server_count": "1",
                "status": "completed",
                "server_list": [{"server_id": "10.0.0.1", "host_nic_ip": "reserve", "device": devices}],
            }
        )
    )
    return path


def test_standalone_training(trained_on_ascend):
    folder, result = trained_on_ascend
    assert result.returncode == 0, tail(result)
    assert "device: Ascend 1" in result.stdout
    assert all((folder / "Model" / "Ckpt" / f"Final{net}.ckpt").exists() for net in ("CoarseNet", "FineNet"))


def test_evaluation_with_a_short_last_batch(trained_on_ascend, on_ascend, nyu):
    folder, _ = trained_on_ascend
    result = on_ascend("scripts/run_eval.sh", nyu, "--batch_size", 3, cwd=folder)
    assert result.returncode == 0 and "FineNet: delta1_loss" in result.stdout, tail(result)


@pytest.mark.parametrize("net", ["coarse", "fine"])
def test_export(trained_on_ascend, on_ascend, net):
    folder, _ = trained_on_ascend
    result = on_ascend(f"scripts/run_export_{net}_model.sh", "--file_format", "MINDIR", "ONNX", cwd=folder)
    assert result.returncode == 0 and result.stdout.count("verified to") == 2, tail(result)


def test_distributed_training_with_a_rank_table_in_the_environment(on_ascend, nyu, tmp_path, fine_stage, rank_table):
    trace = tmp_path / "trace.txt"
    result = on_ascend(
        "scripts/run_distributed_train_ascend.sh",
        nyu,
        rank_table,
        *fine_stage,
        cwd=tmp_path,
        RANK_TABLE_FILE=str(rank_table),
        EMULATED_TRACE=str(trace),
    )
    assert result.returncode == 0, tail(result)
    assert "device: Ascend 0, 2 ranks" in result.stdout
    assert "10 epochs of 2 steps of 2, starting at step 0" in result.stdout  # --batch_size 2 wins over the script's
    names = trace.read_text().splitlines()
    assert sorted(name for name in names if name.startswith("device")) == ["device 0", "device 1"]
    assert KERNEL_BY_KERNEL in names and GRAPH_ENGINE not in names


def test_standalone_training_with_a_rank_table_in_the_environment(on_ascend, nyu, tmp_path, fine_stage, rank_table):
    trace = tmp_path / "trace.txt"
    result = on_ascend(
        "scripts/run_standalone_train_ascend.sh",
        nyu,
        0,
        *fine_stage,
        "--amp_level",
        "O0",
        cwd=tmp_path,
        RANK_TABLE_FILE=str(rank_table),
        EMULATED_TRACE=str(trace),
    )
    assert result.returncode == 0, tail(result)
    names = trace.read_text().splitlines()
    assert KERNEL_BY_KERNEL in names and GRAPH_ENGINE not in names


def error_line(result):
    """What a user's mistake prints, other than MindSpore's own log."""
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("[ERROR] ME", "[CRITICAL] ME"))]
    assert result.returncode == 2 and len(lines) == 1, tail(result)
    return lines[0]


def test_a_device_that_is_not_there(on_ascend, nyu, tmp_path):
    result = on_ascend("eval.py", "--test_data", nyu, "--device_id", 9, cwd=tmp_path)
    assert error_line(result) == "eval.py: error: --device_id 9: expected 0 to 7: there are 8 devices"


def test_a_driver_that_does_not_open_the_chip(on_ascend, nyu, tmp_path):
    assert "507033" in error_line(on_ascend("eval.py", "--test_data", nyu, cwd=tmp_path, device_error=507033))


def test_a_plugin_that_does_not_load(cann, on_ascend, nyu, tmp_path):
    shutil.copytree(cann / "lib64", tmp_path / "lib64", symlinks=True)
    (tmp_path / "lib64" / "libge_runner.so").unlink()
    result = on_ascend(
        "eval.py",
        "--test_data",
        nyu,
        "--device_target",
        "Ascend",
        cwd=tmp_path,
        LD_LIBRARY_PATH=str(tmp_path / "lib64"),
    )
    assert "libge_runner.so" in error_line(result)


def test_a_dry_run(trained_on_ascend, on_ascend, nyu):
    folder, _ = trained_on_ascend
    result = on_ascend("eval.py", "--test_data", nyu, cwd=folder, MS_SIMULATION_LEVEL="1")
    assert "device: Ascend 0" in result.stdout, tail(result)
