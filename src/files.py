"""Output files that are complete or absent."""

import contextlib
import os
import tempfile
from pathlib import Path


@contextlib.contextmanager
def replacing(path, mode="w"):
    """Open a temporary file beside `path`; when the block ends well it takes the name, else it goes."""
    path = Path(path)
    descriptor, partial = tempfile.mkstemp(path.suffix, f".{path.stem}-partial-", path.parent)
    os.fchmod(descriptor, 0o644)
    try:
        options = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
        with open(descriptor, mode, **options) as file:
            yield file
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)


def write_text(path, text):
    """Write `text` to `path`, whole or not at all."""
    with replacing(path) as file:
        file.write(text)
