"""Check an HCCL rank table and print what the launcher on this server needs.

Prints one line, `WORKERS LOCAL_WORKERS NODE_RANK MASTER PORT FIRST_RANK DEVICE,DEVICE,...`, or an error.
"""

import argparse
import ipaddress
import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.base import cli
from src.base.errors import UserError
from src.base.files import StrPath

PORT = 8118  # default of MASTER_PORT, the port of the scheduler on the first server


class Server(NamedTuple):
    """A server of the table."""

    server_id: str
    devices: list[tuple[int, int]]  # (rank, device id), ordered by rank


def read(path: StrPath) -> list[Server]:
    """Read and check a rank table. Returns its servers. Raises UserError if it is not valid."""
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
        servers = [_server(entry, number, path) for number, entry in enumerate(table["server_list"])]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not JSON: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a rank table: expected an object with a list server_list of servers") from error
    counts = {len(server.devices) for server in servers}
    if len(counts) > 1:  # msrun computes a rank as node_rank * local_worker_num + index
        numbers = " and ".join(map(str, sorted(counts)))
        raise UserError(f"{path}: servers with {numbers} devices: expected as many on each")
    ranks = sorted(rank for server in servers for rank, _ in server.devices)
    if ranks != list(range(len(ranks))) or not ranks:
        raise UserError(f"{path}: the rank_id are {ranks}, expected 0 to {max(len(ranks) - 1, 0)}, each once")
    return servers


def _server(entry: Any, number: int, path: StrPath) -> Server:
    """Check the entry of a server. Raises UserError, or KeyError, TypeError or AttributeError if it is no entry."""
    where = f"{path}: server_list[{number}]"
    devices = []
    if "server_id" not in entry or not entry.get("device"):
        raise UserError(f"{where}: expected server_id and a list device")
    for position, device in enumerate(entry["device"]):
        for key in ("device_id", "device_ip", "rank_id"):
            if key not in device:
                raise UserError(f"{where}: device[{position}] has no {key}")
        try:
            devices.append((int(device["rank_id"]), int(device["device_id"])))
            if min(devices[-1]) < 0:
                raise ValueError("rank_id and device_id count from 0")
            ipaddress.ip_address(device["device_ip"])
        except ValueError as error:
            raise UserError(f"{where}: device[{position}]: {error}") from error
    if len({device_id for _, device_id in devices}) != len(devices):
        raise UserError(f"{where}: a device_id is there twice")
    devices.sort()
    if devices != sorted(devices, key=lambda device: device[1]):
        # ASCEND_RT_VISIBLE_DEVICES must be ascending, and msrun assigns ranks in that order.
        raise UserError(f"{where}: rank_id and device_id must rise together: expected the devices in ascending order")
    if devices[-1][0] - devices[0][0] != len(devices) - 1:
        raise UserError(f"{where}: the rank_id of one server must follow each other, got {[r for r, _ in devices]}")
    return Server(str(entry["server_id"]), devices)


def own_addresses() -> set[str]:
    """Return the addresses and the name of this host."""
    name = socket.gethostname()
    try:
        addresses = {str(info[4][0]) for info in socket.getaddrinfo(name, None)}
    except OSError:
        addresses = set()
    return addresses | {name}


def own_server(servers: Sequence[Server], server_id: str | None, addresses: set[str], path: StrPath) -> int:
    """Return the index of this host's server.

    Args:
        servers: the servers of the rank table.
        server_id: the environment variable SERVER_ID, an index or a server_id of the table, or None.
        addresses: this host's addresses; used if `server_id` is None.
        path: the rank table, for error messages.

    Raises UserError if the server cannot be determined.
    """
    if len(servers) == 1:
        return 0
    names = [server.server_id for server in servers]
    if server_id is not None:
        if server_id in names:
            return names.index(server_id)
        if server_id.isdecimal() and int(server_id) < len(servers):
            return int(server_id)
        raise UserError(f"SERVER_ID={server_id}: expected 0 to {len(servers) - 1}, or one of {', '.join(names)}")
    matches = [index for index, name in enumerate(names) if name in addresses]
    if len(matches) != 1:
        raise UserError(f"{path}: cannot tell which of {', '.join(names)} this host is: set SERVER_ID")
    return matches[0]


def master_port(wanted: str | None, servers: int, index: int) -> int:
    """Return the port of MindSpore's scheduler on the first server.

    Args:
        wanted: the environment variable MASTER_PORT, or None: PORT, or with a single server any free port.
        servers: number of servers.
        index: index of this server.

    Raises UserError if the port is in use; the scheduler would exit, and its workers would wait for ten minutes.
    """
    if wanted is None:
        wanted = "0" if servers == 1 else str(PORT)
    elif not wanted.isdecimal() or not 0 < int(wanted) < 65536:
        raise UserError(f"MASTER_PORT={wanted}: expected 1 to 65535")
    if index > 0:
        return int(wanted)
    with socket.socket() as probe:
        try:
            probe.bind(("", int(wanted)))
        except OSError as error:
            raise UserError(
                f"port {wanted} cannot be had ({error.strerror}; after a run it stays taken for a minute): "
                "set MASTER_PORT, the same on all servers"
            ) from error
        return int(probe.getsockname()[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rank_table", type=Path)
    options = parser.parse_args()
    servers = read(options.rank_table)
    # MindSpore numbers the nodes in the order of their ranks.
    servers.sort(key=lambda server: server.devices[0])
    index = own_server(servers, os.environ.get("SERVER_ID"), own_addresses(), options.rank_table)
    devices = servers[index].devices
    master = "127.0.0.1" if len(servers) == 1 else servers[0].server_id
    port = master_port(os.environ.get("MASTER_PORT"), len(servers), index)
    sys.stdout.write(
        f"{sum(len(server.devices) for server in servers)} {len(devices)} {index} {master} {port} "
        f"{devices[0][0]} {','.join(str(device_id) for _, device_id in devices)}\n"
    )
    return 0


if __name__ == "__main__":
    cli.run(main)
