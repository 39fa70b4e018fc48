"""Print the device that `auto` means on this machine, Ascend or CPU. Messages go to standard error."""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.base import cli


def main() -> int:
    from src.nets import device

    (handler,) = logging.getLogger().handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(sys.stderr)
    sys.stdout.write(device.auto() + "\n")
    return 0


if __name__ == "__main__":
    cli.run(main)
