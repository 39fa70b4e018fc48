"""Fixtures: the emulator, built once, and commands on it."""

import pytest

from tests.ascend import emulator


@pytest.fixture(scope="session")
def cann(once):
    """The folder of the emulator's libraries, built now; skips where that cannot be."""
    if reason := emulator.missing():
        pytest.skip(reason)
    return once("cann", emulator.build)


@pytest.fixture(scope="session")
def on_ascend(cann, run):
    """As `run`, on an emulated Ascend: soc, cores and device_error are emulator.environment's; the rest, variables."""

    def run_on_ascend(program, *arguments, cwd, soc="Ascend910B1", cores=16, device_error=None, **variables):
        settings = {} if device_error is None else {"device_error": device_error}
        environment = emulator.environment(cann, soc=soc, cores=cores, **settings)
        return run(program, *arguments, cwd=cwd, **{**environment, **variables})

    return run_on_ascend
