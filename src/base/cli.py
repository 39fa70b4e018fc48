"""What every command shares: argument types, logging to the screen, and the exit code of a user's mistake."""

import argparse
import contextlib
import io
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, Protocol

from src.base.errors import CheckFailed, UserError
from src.base.files import printable
from src.base.stopping import StopRequest

CHECK_FAILED, USER_MISTAKE = 1, 2


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Names the defaults that are values."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


# The scripts set it when they are run from scripts/.
MODEL = Path(os.environ.get("DEPTHNET_MODEL", "Model"))


def positive_int(text: str) -> int:
    """An argparse type: an integer from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1")
    return value


def non_negative_int(text: str) -> int:
    """An argparse type: an integer from 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0")
    return value


def seed(text: str) -> int:
    """An argparse type: what MindSpore and NumPy take as a seed."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to {2**32 - 1}")
    return value


def finite_float(text: str) -> float:
    """An argparse type: a finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def positive_float(text: str) -> float:
    """An argparse type: a finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def non_negative_float(text: str) -> float:
    """An argparse type: a finite number from 0."""
    value = finite_float(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0")
    return value


def share(text: str) -> float:
    """An argparse type: a number from 0 to below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to below 1")
    return value


def add_nets(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the nets, their runtime and their device, for `nets.files_from_options`."""
    add = parser.add_argument
    add("--coarse_ckpt_model", type=Path, help="default: Model/Ckpt/FinalCoarseNet.ckpt, or else weights/ of this repo")
    add("--fine_ckpt_model", type=Path, help="default: Model/Ckpt/FinalFineNet.ckpt, or else weights/ of this repo")
    add("--coarse_onnx", type=Path, help="with --fine_onnx: ONNX files written by export.py, run without MindSpore")
    add("--fine_onnx", type=Path)
    add("--flip_average", action="store_true",
        help="average log depth with that of the mirror image: slightly more accurate, half as fast")
    add("--batch_size", type=positive_int, default=8)
    add("--device_target", choices=("auto", "Ascend", "GPU", "CPU"), default="auto")
    add("--device_id", type=non_negative_int, default=0)


def check_nets(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Exit with an error if the options of `add_nets` do not belong together."""
    if (options.coarse_onnx is None) != (options.fine_onnx is None):
        parser.error("--coarse_onnx and --fine_onnx belong together")


SHIPPED = {net: Path(__file__).resolve().parents[2] / "weights" / f"{net}.ckpt" for net in ("CoarseNet", "FineNet")}


def default_or_shipped_checkpoints() -> list[Path]:
    """The `default_checkpoint` of CoarseNet and of FineNet; where there is neither, this repo's, which is said."""
    defaults = [default_checkpoint(net) for net in SHIPPED]
    if any(path.exists() for path in defaults) or not all(path.exists() for path in SHIPPED.values()):
        return defaults
    logging.info("no %s: taking the weights of this repo, %s (NYU Depth V2, indoors)", defaults[0],
                 SHIPPED["CoarseNet"].parent)
    return list(SHIPPED.values())


def default_checkpoint(net: str) -> Path:
    """MODEL/Ckpt/Final<net>.ckpt, or what a distributed run has left in its place, which is said."""
    alone = MODEL / "Ckpt" / f"Final{net}.ckpt"
    distributed = alone.with_stem(f"{alone.stem}_rank0")
    if distributed.exists() and not alone.exists():
        logging.info("no %s: taking %s", alone, distributed)
        return distributed
    return alone


def default_workers() -> int:
    """Threads for decoding: one a processor that this process may use, at most 8."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class _Formatter(logging.Formatter):
    """Names that are no text are shown all the same."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().format(record).split("\n")))


class _Screen(logging.StreamHandler[Any]):
    """Standard output. When it cannot be written any more (a closed terminal or pipe, a full disk) the work goes on in
    silence, and `error` holds why: a result that nobody got is no success."""

    error: OSError | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self.error is None:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        if isinstance(error := sys.exc_info()[1], OSError):
            self.error = error
        else:
            super().handleError(record)


def run(main: Callable[..., int]) -> NoReturn:
    """Run `main` and exit with its code; a user's mistake is one line on stderr and exit code 2, a failed
    check the same with 1.

    `main` takes the StopRequest when it has a parameter; by itself a signal exits with 128 + its number, and leaves
    nothing half-written.
    """
    _open_streams()
    os.environ.pop("MPLBACKEND", None)  # a notebook's, for a module that this environment may not have
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    stop = StopRequest()
    screen = _Screen(sys.stdout)
    screen.setFormatter(_Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[screen])
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of its caches, and of a matplotlibrc's mistakes
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of damage that it reads past; what it cannot read is named
    try:
        _check_current_folder()
        code = main(stop) if main.__code__.co_argcount else main()
    except (UserError, OSError) as error:
        code = _complain(error, USER_MISTAKE)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("src"):
            raise
        requirements = "requirements-app.txt" if error.name in ("gradio", "trimesh") else "requirements.txt"
        code = _complain(f"Python has no {error.name}: pip install -r {requirements}", USER_MISTAKE)
    except CheckFailed as error:
        code = _complain(error, CHECK_FAILED)
    except KeyboardInterrupt:  # where signals cannot be waited for
        code = 130
    sys.exit(_flushed(screen, code))


def _check_current_folder() -> None:
    """Raise UserError where it is gone: MindSpore cannot be imported there, and crashes."""
    try:
        os.getcwd()
    except OSError as error:
        raise UserError("the current folder is gone, deleted or no longer mounted: cd to another") from error


def _open_streams() -> None:
    """Have standard streams that are closed lead nowhere, as /dev/null does: the next files that are opened would have
    their numbers, and get what is written to them."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if number == 0 else "w", encoding="utf-8"))  # noqa: SIM115


def _flushed(screen: _Screen, code: int) -> int:
    """The exit code after the last of standard output is out, or could not be."""
    try:
        sys.stdout.flush()
    except OSError as error:
        screen.error = screen.error or error
    if screen.error is None:
        return code
    sys.stdout = None  # the interpreter would flush it again, and complain
    return code or _complain(f"standard output could not be written: {screen.error.strerror}", CHECK_FAILED)


def _complain(error: object, code: int) -> int:
    message = printable(" ".join(str(error).split()))
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{os.path.basename(sys.argv[0])}: error: {message}\n")
    return code


class _LogProgress(contextlib.AbstractContextManager[Any]):
    """What tqdm is on a terminal, as a plain line now and then."""

    def __init__(self, total: int | None, desc: str, unit: str, initial: int = 0, interval_s: float = 10.0) -> None:
        self.total, self.desc, self.unit, self.done, self.interval_s = total, desc, unit, initial, interval_s
        self.last = time.monotonic()

    def update(self, count: int = 1) -> None:
        """`count` more are done."""
        self.done += count
        if time.monotonic() - self.last >= self.interval_s:
            self.last = time.monotonic()
            of = "" if self.total is None else f" of {self.total}"
            logging.info("%s: %d%s %ss", self.desc, self.done, of, self.unit)

    def __exit__(self, *_: object) -> None:
        return None


def _has_tqdm() -> bool:
    """On a terminal, where tqdm is: a 310 host runs preprocess.py with NumPy, OpenCV and Pillow only."""
    if not sys.stderr or not sys.stderr.isatty():
        return False
    try:
        import tqdm  # noqa: F401
    except ImportError:
        return False
    return True


class Bar(Protocol):
    """What is told of each step, picture or frame that is done."""

    def update(self, count: int = 1, /) -> object: ...


class Progress(Bar, Protocol):
    """A tqdm bar, or what stands for it in a log."""

    def __enter__(self) -> "Progress": ...
    def __exit__(self, *_: object) -> bool | None: ...


def progress(total: int | None, desc: str, unit: str, initial: int = 0) -> Progress:
    """A tqdm bar on a terminal; in a log a line every ten seconds. `total` None is not known."""
    if not _has_tqdm():
        return _LogProgress(total, desc, unit, initial)
    from tqdm import tqdm

    class Quiet(tqdm):
        """Goes on in silence when the terminal is closed."""

        def display(self, *arguments: Any, **named: Any) -> Any:
            with contextlib.suppress(OSError):
                return super().display(*arguments, **named)

    return Quiet(total=total, desc=desc, unit=unit, initial=initial)


def log_above_progress() -> contextlib.AbstractContextManager[None]:
    """A context in which log lines do not tear a progress bar."""
    if not _has_tqdm():
        return contextlib.nullcontext()
    from tqdm.contrib.logging import logging_redirect_tqdm

    return logging_redirect_tqdm()
