"""Output files that are complete or absent."""

import contextlib
import os
import tempfile
from pathlib import Path

_PARTIAL = "-partial-"


@contextlib.contextmanager
def replacing(path, mode="w", durable=True):
    """Open a temporary file beside `path`; when the block ends well it takes the name, else it goes.

    `durable`: it is on disk (fsync) before it takes the name, so that a power cut leaves the old file or the new one.
    """
    path = Path(path)
    descriptor, partial = tempfile.mkstemp(path.suffix, f".{path.stem}{_PARTIAL}", path.parent)
    os.fchmod(descriptor, 0o644)
    try:
        options = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
        with open(descriptor, mode, **options) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
        if durable:
            _fsync(path.parent)
    finally:
        Path(partial).unlink(missing_ok=True)


def remove_partial(folder):
    """Remove what processes that were killed while writing into `folder` have left there."""
    for path in Path(folder).glob(f".*{_PARTIAL}*"):
        path.unlink()


def write_text(path, text):
    """Write `text` to `path`, whole or not at all."""
    with replacing(path) as file:
        file.write(text)


def _fsync(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
