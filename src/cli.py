"""What every command shares: argument types, logging to the screen, and the exit code of a user's mistake."""

import argparse
import contextlib
import logging
import os
import sys
import time
from pathlib import Path

from src.errors import CheckFailed, UserError

CHECK_FAILED, USER_MISTAKE = 1, 2


def positive_int(text):
    """An argparse type: an integer from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1")
    return value


def non_negative_int(text):
    """An argparse type: an integer from 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0")
    return value


def positive_float(text):
    """An argparse type: a finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def default_workers():
    """Threads for decoding: one a processor that this process may use, at most 8."""
    return min(8, len(os.sched_getaffinity(0)))


def run(main):
    """Run `main` and exit with its code; a user's mistake is one line on stderr and exit code 2, a failed
    check the same with 1."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        code = main()
    except (UserError, OSError) as error:
        code = _complain(error, USER_MISTAKE)
    except ModuleNotFoundError as error:
        if error.name.startswith("src"):
            raise
        code = _complain(f"Python has no {error.name}: pip install -r requirements.txt", USER_MISTAKE)
    except CheckFailed as error:
        code = _complain(error, CHECK_FAILED)
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _complain(error, code):
    message = " ".join(str(error).split())
    sys.stderr.write(f"{Path(sys.argv[0]).name}: error: {message}\n")
    return code


class _LogProgress(contextlib.AbstractContextManager):
    """What tqdm is on a terminal, as a plain line now and then."""

    def __init__(self, total, desc, unit, initial=0, interval_s=10.0):
        self.total, self.desc, self.unit, self.done, self.interval_s = total, desc, unit, initial, interval_s
        self.last = time.monotonic()

    def update(self, count=1):
        """`count` more are done."""
        self.done += count
        if time.monotonic() - self.last >= self.interval_s:
            self.last = time.monotonic()
            logging.info("%s: %d of %d %ss", self.desc, self.done, self.total, self.unit)

    def __exit__(self, *_):
        return None


def progress(total, desc, unit, initial=0):
    """A tqdm bar on a terminal; in a log a line every ten seconds."""
    if not sys.stderr.isatty():
        return _LogProgress(total, desc, unit, initial)
    from tqdm import tqdm  # a 310 host runs preprocess.py with NumPy, OpenCV and Pillow only

    return tqdm(total=total, desc=desc, unit=unit, initial=initial)


def log_above_progress():
    """A context in which log lines do not tear a progress bar."""
    if not sys.stderr.isatty():
        return contextlib.nullcontext()
    from tqdm.contrib.logging import logging_redirect_tqdm

    return logging_redirect_tqdm()


def writable_folder(path):
    """Create folder `path` and prove that a file can be written there. Raises UserError."""
    path = Path(path)
    probe = path / ".write-test"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{path}: cannot write there: {error.strerror or error}") from error
    return path
