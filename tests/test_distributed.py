"""Data-parallel training with MindSpore's own collectives: two real workers on CPU."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from src.base.errors import UserError
from tests.conftest import ROOT
from tests.test_commands import one_line
from tools import rank_table
from train import parse_args

SCRIPT = ROOT / "scripts" / "run_distributed_train_ascend.sh"
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHON": sys.executable,
    "DEVICE_TARGET": "CPU",
}


def table(*device_counts):
    """A rank table of servers with so many devices each."""
    servers, rank = [], 0
    for number, count in enumerate(device_counts):
        devices = [
            {"device_id": str(i), "device_ip": f"192.{number}.{i}.1", "rank_id": str(rank + i)} for i in range(count)
        ]
        rank += count
        servers.append({"server_id": f"10.0.0.{number + 1}", "device": devices, "host_nic_ip": "reserve"})
    return {"version": "1.0", "server_count": str(len(servers)), "server_list": servers, "status": "completed"}


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("counts", "addresses", "server_id", "expected"),
    [
        ((1,), set(), None, (1, 1, 0)),
        ((2,), set(), None, (2, 2, 0)),
        ((8,), set(), None, (8, 8, 0)),
        ((8, 8), {"10.0.0.2", "127.0.0.1"}, None, (16, 8, 1)),
        ((8, 8), set(), "0", (16, 8, 0)),
        ((8, 8), {"10.0.0.1"}, "10.0.0.2", (16, 8, 1)),
    ],
)
def test_rank_tables_of_one_and_two_servers(tmp_path, counts, addresses, server_id, expected):
    servers = rank_table.read(write(tmp_path / "table.json", table(*counts)))
    index = rank_table.own_server(servers, server_id, addresses, "table.json")
    assert (sum(len(server.devices) for server in servers), len(servers[index].devices), index) == expected


def descending():
    content = table(2)
    for device, number in zip(content["server_list"][0]["device"], ("1", "0"), strict=True):
        device["device_id"] = number
    return content


def broken_tables():
    def change(path, value):
        content = table(2)
        target = content["server_list"][0]["device"][1]
        if value is None:
            del target[path]
        else:
            target[path] = value
        return content

    return [
        ("{", "not JSON"),
        ("[]", "not a rank table"),
        ({"server_list": []}, "the rank_id are [], expected 0 to 0"),
        (change("rank_id", "0"), "must follow each other"),
        (change("rank_id", "2"), "must follow each other"),
        (change("device_ip", "192.1.27"), "device[1]: '192.1.27' does not appear to be an IPv4"),
        (change("device_ip", None), "device[1] has no device_ip"),
        (change("device_id", "0"), "is there twice"),
        (change("rank_id", "one"), "invalid literal"),
        (table(0), "expected server_id and a list device"),
        (change("device_id", "-3"), "count from 0"),
        (table(2, 1), "servers with 1 and 2 devices: expected as many"),
        (descending(), "must rise together"),
        ("[" * 100_000, "not JSON"),
        ("\\udc80", "not JSON"),
    ]


@pytest.mark.parametrize(("content", "message"), broken_tables())
def test_what_is_wrong_with_a_rank_table_is_said(tmp_path, content, message):
    with pytest.raises(UserError) as caught:
        rank_table.read(write(tmp_path / "table.json", content))
    assert message in str(caught.value)


def test_a_host_that_is_on_no_server_must_say_which_it_is(tmp_path, run):
    path = write(tmp_path / "table.json", table(8, 8))
    line = one_line(run("tools/rank_table.py", path, cwd=tmp_path))
    assert "cannot tell which of 10.0.0.1, 10.0.0.2 this host is: set SERVER_ID" in line
    assert "SERVER_ID=7: expected 0 to 1" in one_line(run("tools/rank_table.py", path, cwd=tmp_path, SERVER_ID="7"))
    result = run("tools/rank_table.py", path, cwd=tmp_path, SERVER_ID="1")
    assert result.stdout == "16 8 1 10.0.0.1 8118 8 0,1,2,3,4,5,6,7\n"


def test_a_port_that_is_taken_is_said_before_anything_is_started():
    with socket.socket() as taken:
        taken.bind(("", 0))
        number = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {number} cannot be had .*: set MASTER_PORT, the same on all"):
            rank_table.master_port(str(number), 2, 0)
        assert rank_table.master_port(str(number), 2, 1) == number  # of another server
        assert rank_table.master_port(None, 1, 0) not in (number, rank_table.PORT)
    assert rank_table.master_port(str(number), 1, 0) == number
    with pytest.raises(UserError, match="MASTER_PORT=x: expected 1 to 65535"):
        rank_table.master_port("x", 1, 0)


def fake(folder, name):
    """A program that writes down how it was called, and with which of the environment that counts, in one write:
    several of them run at once."""
    path = folder / name
    path.write_text(f"""#!/bin/bash
printf '%s RANK_TABLE_FILE=%s ASCEND_RT_VISIBLE_DEVICES=%s HCCL_CONNECT_TIMEOUT=%s\\n' \\
    "{name} $*" "${{RANK_TABLE_FILE:-}}" \\
    "${{ASCEND_RT_VISIBLE_DEVICES:-}}" "${{HCCL_CONNECT_TIMEOUT:-}}" >>'{folder}/calls'
""")
    path.chmod(0o755)


def started(tmp_path, nyu, counts, *arguments):
    """What the script starts on the second of two servers with so many devices: written down, for HCCL is not here."""
    path = write(tmp_path / "table.json", table(*counts))
    fake(tmp_path, "msrun")
    environment = {
        **ENVIRONMENT,
        "PATH": f"{tmp_path}{os.pathsep}{ENVIRONMENT['PATH']}",
        "DEVICE_TARGET": "Ascend",
        "SERVER_ID": "1",
    }
    environment.pop("HCCL_CONNECT_TIMEOUT", None)  # importing MindSpore has set it here
    # msrun has to be the first on PATH, and PYTHON's folder is put before it
    (tmp_path / "python").symlink_to(sys.executable)
    result = subprocess.run(
        ["bash", SCRIPT, nyu, path, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**environment, "PYTHON": "./python"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (call,) = (tmp_path / "calls").read_text().splitlines()
    return call


@pytest.mark.long
@pytest.mark.parametrize(
    ("counts", "arguments", "batch_size"),
    [((1, 1), [], 16), ((3, 3), [], 5), ((4, 4), [], 4), ((20, 20), [], 1), ((4, 4), ["--batch_size", "32"], 32)],
)
def test_all_devices_together_take_the_model_zoo_s_batch_unless_told(tmp_path, nyu, counts, arguments, batch_size):
    words = started(tmp_path, nyu, counts, *arguments).split(" RANK_TABLE_FILE")[0].split()
    assert parse_args(words[words.index(f"{ROOT}/train.py") + 1 :]).recipe.batch_size == batch_size


@pytest.mark.long
def test_the_command_line_that_would_start_on_ascend(tmp_path, nyu):
    call = started(tmp_path, nyu, (4, 4), "--seed", "3")
    for part in (
        "--worker_num=8",
        "--local_worker_num=4",
        "--node_rank=1",
        "--master_addr=10.0.0.1",
        "--master_port=8118",
        f"{ROOT}/train.py --data_url {nyu} --device_target Ascend --batch_size 4 --seed 3",
        "RANK_TABLE_FILE= ",
        "ASCEND_RT_VISIBLE_DEVICES=0,1,2,3",
        "HCCL_CONNECT_TIMEOUT=1800",
    ):
        assert part in call, call
    assert "rank_table_file" not in call


@pytest.fixture(scope="module")
def two_and_one(tmp_path_factory):
    """Two workers with batch 2 and one with batch 4, 10 steps each."""
    folder = tmp_path_factory.mktemp("ranks")
    worker = [str(ROOT / "tests" / "distributed_worker.py"), str(folder)]
    port = rank_table.master_port(None, 1, 0)
    subprocess.run(
        [
            "msrun",
            "--worker_num=2",
            "--local_worker_num=2",
            "--join=True",
            f"--master_port={port}",
            f"--log_dir={folder / 'log'}",
            *worker,
            "2",
            "10",
        ],
        check=True,
        capture_output=True,
        env=ENVIRONMENT,
        timeout=300,
    )
    subprocess.run([sys.executable, *worker, "4", "10"], check=True, capture_output=True, env=ENVIRONMENT, timeout=300)
    return [np.load(folder / name) for name in ("rank0of2.npz", "rank1of2.npz", "rank0of1.npz")]


@pytest.mark.long
def test_weights_are_equal_on_both_ranks_after_every_step(two_and_one):
    first, second, _ = two_and_one
    assert len(set(first["digests"])) == 10
    np.testing.assert_array_equal(first["digests"], second["digests"])


@pytest.mark.long
def test_two_workers_equal_one_with_twice_the_batch(two_and_one):
    first, _, alone = two_and_one
    assert alone["losses"][-1] < 0.9 * alone["losses"][0]
    np.testing.assert_allclose(first["losses"], alone["losses"], atol=1e-5)
    np.testing.assert_allclose(first["weights"], alone["weights"], atol=1e-5)


def start(arguments, cwd):
    return subprocess.Popen(
        ["bash", str(SCRIPT), *map(str, arguments)],
        cwd=cwd,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def workers_of(launcher):
    """The process ids of the workers, by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = dict(item.split("=", 1) for item in (folder / "environ").read_text().split("\0")[:-1])
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError):
            continue
        if environment.get("MS_ROLE") == "MS_WORKER" and "train.py" in (folder / "cmdline").read_text():
            grandparent = int(Path(f"/proc/{parent}/stat").read_text().rsplit(")", 1)[1].split()[1])
            if launcher.pid in (parent, grandparent):
                found[int(environment["RANK_ID"])] = int(folder.name)
    return found


@pytest.mark.long
def test_a_worker_s_mistake_is_the_script_s_exit_code(nyu, tmp_path):
    path = write(tmp_path / "table.json", table(2))
    result = start([nyu, path, "--batch_size", 5], tmp_path)
    _, errors = result.communicate(timeout=120)
    assert result.returncode == 2
    assert "8 training pairs do not fill a batch of 5 on each of 2 devices" in errors
    assert "a worker ended with exit code 2" in errors


def test_the_script_says_what_is_wrong_with_its_arguments(nyu, run, tmp_path):
    def complain(*arguments, **environment):
        return one_line(run("scripts/run_distributed_train_ascend.sh", *arguments, cwd=tmp_path, **environment))

    path = write(tmp_path / "table.json", table(2))
    assert "DATASET_PATH RANK_TABLE_FILE" in complain(nyu)
    assert "absent: no such folder" in complain("absent", path)
    assert "absent.json: no such file" in complain(nyu, "absent.json")
    assert "not JSON" in complain(nyu, write(tmp_path / "broken.json", "{"), DEVICE_TARGET="CPU")
