"""Command-line code shared by all commands: argument types, logging, progress bars, and exit codes."""

import argparse
import contextlib
import io
import logging
import math
import os
import re
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeAlias

from src.base.errors import CheckFailed, UserError
from src.base.files import printable
from src.base.stopping import StopRequest

CHECK_FAILED, USER_MISTAKE = 1, 2

# Option name -> what the option needs to have an effect: (in words, as a function of all options).
Needs: TypeAlias = Mapping[str, tuple[str, Callable[[Any], bool]]]


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to the help of each option, unless it is None or False."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


# Set by the scripts when they are run from scripts/.
MODEL = Path(os.environ.get("DEPTHNET_MODEL", "Model"))


def positive_int(text: str) -> int:
    """Argparse type: an integer >= 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1")
    return value


def non_negative_int(text: str) -> int:
    """Argparse type: an integer >= 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0")
    return value


def seed(text: str) -> int:
    """Argparse type: a random seed that MindSpore and NumPy accept."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to {2**32 - 1}")
    return value


def finite_float(text: str) -> float:
    """Argparse type: a finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def positive_float(text: str) -> float:
    """Argparse type: a finite number > 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def non_negative_float(text: str) -> float:
    """Argparse type: a finite number >= 0."""
    value = finite_float(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0")
    return value


def share(text: str) -> float:
    """Argparse type: a number in [0, 1)."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to below 1")
    return value


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None, needs: Needs) -> argparse.Namespace:
    """Parse the options of a command, and check that each option the user gives has an effect.

    Args:
        parser: the command's options.
        arguments: the command line. Default: that of this process.
        needs: the options that have an effect only together with certain others.

    Raises UserError naming an option that has no effect.
    """
    # Parse with None for every default first: an option that the user did not give need not have an effect.
    names = [action.dest for action in parser._actions if action.default != argparse.SUPPRESS]
    given = vars(parser.parse_args(arguments, argparse.Namespace(**dict.fromkeys(names))))
    options = argparse.Namespace(
        **{name: parser.get_default(name) if value is None else value for name, value in given.items()}
    )
    for name, (need, has_effect) in needs.items():
        if given[name] is not None and not has_effect(options):
            raise UserError(f"--{name} has no effect here: it needs {need}")
    return options


def _runs_mindspore(options: argparse.Namespace) -> bool:
    return options.coarse_onnx is None


# The needs of the options of `add_nets`, for `parse`.
NETS_NEED: Needs = dict.fromkeys(
    ("coarse_ckpt_model", "fine_ckpt_model", "device_target", "device_id"),
    ("checkpoints, not --coarse_onnx", _runs_mindspore),
)


def add_nets(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the nets, their runtime and their device, for `nets.files_from_options`."""
    add = parser.add_argument
    add("--coarse_ckpt_model", type=Path, help="default: Model/Ckpt/FinalCoarseNet.ckpt, or else weights/ of this repo")
    add("--fine_ckpt_model", type=Path, help="default: Model/Ckpt/FinalFineNet.ckpt, or else weights/ of this repo")
    add("--coarse_onnx", type=Path, help="with --fine_onnx: ONNX files written by export.py, run without MindSpore")
    add("--fine_onnx", type=Path)
    add(
        "--flip_average",
        action="store_true",
        help="average log depth with that of the mirror image: slightly more accurate, half as fast",
    )
    add("--batch_size", type=positive_int, default=8)
    add("--device_target", choices=("auto", "Ascend", "GPU", "CPU"), default="auto")
    add("--device_id", type=non_negative_int, default=0)


def check_nets(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Exit with an error if the options of `add_nets` do not belong together."""
    if (options.coarse_onnx is None) != (options.fine_onnx is None):
        parser.error("--coarse_onnx and --fine_onnx belong together")


ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "weights"
SHIPPED = {"CoarseNet": WEIGHTS / "PaperCoarseNet.ckpt", "FineNet": WEIGHTS / "FineNet.ckpt"}


def default_or_shipped_checkpoints() -> list[Path]:
    """Return the `default_checkpoint` of CoarseNet and of FineNet. If neither exists, log that and return weights/ of
    this repo."""
    defaults = [default_checkpoint(net) for net in SHIPPED]
    if any(path.exists() for path in defaults) or not all(path.exists() for path in SHIPPED.values()):
        return defaults
    logging.info(
        "no %s: taking the weights of this repo, %s (NYU Depth V2, indoors)", defaults[0], SHIPPED["CoarseNet"].parent
    )
    return list(SHIPPED.values())


def default_checkpoint(net: str) -> Path:
    """Return MODEL/Ckpt/Final<net>.ckpt. If only a distributed run wrote a checkpoint, log that and return its path."""
    single = MODEL / "Ckpt" / f"Final{net}.ckpt"
    distributed = single.with_stem(f"{single.stem}_rank0")
    if distributed.exists() and not single.exists():
        logging.info("no %s: taking %s", single, distributed)
        return distributed
    return single


def default_workers() -> int:
    """Return the default number of decoding threads: one per available processor, at most 8."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class _Formatter(logging.Formatter):
    """Escapes invalid file names."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().format(record).split("\n")))


class _Screen(logging.StreamHandler[Any]):
    """Logs to standard output. If that fails (closed terminal or pipe, full disk), the command continues without
    output and `error` keeps the reason, so that `run` can exit with a failure."""

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
    """Run `main` and exit with the code that it returns.

    UserError and OSError print one line on stderr and exit with 2, CheckFailed with 1. A signal exits with 128 + its
    number and leaves no partial file.

    Args:
        main: the command. If it has a parameter, it gets the StopRequest.
    """
    _open_streams()
    os.environ.pop("MPLBACKEND", None)  # set by notebooks, to a backend that may not be installed here
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    stop = StopRequest()
    screen = _Screen(sys.stdout)
    screen.setFormatter(_Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[screen])
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # hides messages on its font cache and on matplotlibrc
    warnings.filterwarnings("ignore", module=r"PIL\.")  # on damage that Pillow tolerates; else it raises an ImageError
    try:
        _check_current_folder()
        code = main(stop) if main.__code__.co_argcount else main()
    except (UserError, OSError) as error:
        code = _complain(error, USER_MISTAKE)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("src"):
            raise
        code = _complain(f"Python has no {error.name}: {how_to_install(error.name or '')}", USER_MISTAKE)
    except CheckFailed as error:
        code = _complain(error, CHECK_FAILED)
    except KeyboardInterrupt:  # on Windows, where StopRequest handles no signals
        code = 130
    sys.exit(_flushed(screen, code))


def how_to_install(module: str) -> str:
    """Return the command that installs the first requirements file that lists a module (default: requirements.txt)."""
    listed = re.compile(rf"^{re.escape(module)}\b", re.MULTILINE)
    names = ("requirements.txt", "requirements-predict.txt", "requirements-app.txt", "tools/requirements.txt")
    paths = [ROOT / name for name in names]
    path = next((path for path in paths if listed.search(path.read_text(encoding="utf-8"))), paths[0])
    return f"pip install -r {shlex.quote(str(path))}"


def _check_current_folder() -> None:
    """Raise UserError if the current folder no longer exists: importing MindSpore would crash."""
    try:
        os.getcwd()
    except OSError as error:
        raise UserError("the current folder is gone, deleted or no longer mounted: cd to another") from error


def _open_streams() -> None:
    """Open closed standard streams on /dev/null. Otherwise the next file opened would get the descriptor of a closed
    stream, and the output for that stream would be written into the file."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free descriptor
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if number == 0 else "w", encoding="utf-8"))  # noqa: SIM115


def _flushed(screen: _Screen, code: int) -> int:
    """Flush standard output. Returns `code`, or CHECK_FAILED if the output could not be written."""
    try:
        sys.stdout.flush()
    except OSError as error:
        screen.error = screen.error or error
    if screen.error is None:
        return code
    sys.stdout = None  # keeps the interpreter from flushing it again and printing an error
    return code or _complain(f"standard output could not be written: {screen.error.strerror}", CHECK_FAILED)


def _complain(error: object, code: int) -> int:
    """Print an error as one line on stderr. Returns `code`."""
    message = printable(" ".join(str(error).split()))
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{os.path.basename(sys.argv[0])}: error: {message}\n")
    return code


class _LogProgress(contextlib.AbstractContextManager[Any]):
    """Logs the progress as a line every `interval_s` seconds. Arguments as in `progress`."""

    def __init__(self, total: int | None, desc: str, unit: str, initial: int = 0, interval_s: float = 10.0) -> None:
        self.total, self.desc, self.unit, self.done, self.interval_s = total, desc, unit, initial, interval_s
        self.last = time.monotonic()

    def update(self, count: int = 1) -> None:
        """Add `count` to the units done."""
        self.done += count
        if time.monotonic() - self.last >= self.interval_s:
            self.last = time.monotonic()
            of = "" if self.total is None else f" of {self.total}"
            logging.info("%s: %d%s %ss", self.desc, self.done, of, self.unit)

    def __exit__(self, *_: object) -> None:
        return None


def _has_tqdm() -> bool:
    """Return whether stderr is a terminal and tqdm is installed. A 310 host may lack tqdm."""
    if not sys.stderr or not sys.stderr.isatty():
        return False
    try:
        import tqdm  # noqa: F401
    except ImportError:
        return False
    return True


class Bar(Protocol):
    """Counts the steps, pictures or frames done."""

    def update(self, count: int = 1, /) -> object: ...


class Progress(Bar, Protocol):
    """A Bar that is a context manager: tqdm or _LogProgress."""

    def __enter__(self) -> "Progress": ...
    def __exit__(self, *_: object) -> bool | None: ...


def progress(total: int | None, desc: str, unit: str, initial: int = 0) -> Progress:
    """Return a tqdm bar on a terminal, else a bar that logs a line every ten seconds.

    Args:
        total: number of units, None if unknown.
        desc: the work, such as "predicting".
        unit: name of a unit, such as "image".
        initial: number of units done earlier.
    """
    if not _has_tqdm():
        return _LogProgress(total, desc, unit, initial)
    from tqdm import tqdm

    class Quiet(tqdm):
        """Ignores errors of a closed terminal."""

        def display(self, *arguments: Any, **named: Any) -> Any:
            with contextlib.suppress(OSError):
                return super().display(*arguments, **named)

    return Quiet(total=total, desc=desc, unit=unit, initial=initial)


def log_above_progress() -> contextlib.AbstractContextManager[None]:
    """Return a context in which log lines are printed above the progress bar."""
    if not _has_tqdm():
        return contextlib.nullcontext()
    from tqdm.contrib.logging import logging_redirect_tqdm

    return logging_redirect_tqdm()
