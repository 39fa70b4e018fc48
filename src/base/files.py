"""Output files that are complete or absent, and what file names may hold."""

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias

from src.base.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

StrPath: TypeAlias = str | os.PathLike[str]

_PARTIAL = ".partial-"  # and a random part: two processes that write the same file do not meet
_TEMPORARY = "depthnet-temporary-"

_open_partials: set[Path] = set()
_exiting = threading.Lock()


def printable(name: object) -> str:
    """A file name as text that every screen, page and picture can show: bytes that are not UTF-8 and control
    characters as \\xNN."""
    def shown(letter: str) -> str:
        if letter.isprintable():
            return letter
        byte = ord(letter) - 0xDC00  # how Python keeps a byte that is not UTF-8
        return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else letter.encode("unicode_escape").decode()

    return "".join(map(shown, str(name)))


def partial_path(path: StrPath, ending: str = "") -> Path:
    """A new short name beside `path`, for what is not complete yet."""
    return Path(path).parent / f"{_PARTIAL}{secrets.token_hex(6)}{ending}"


@contextlib.contextmanager
def replacing(path: StrPath, mode: str = "w", durable: bool = True) -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; when the block ends well it takes the name, else it goes.

    `durable`: it is on disk (fsync) before it takes the name, so that a power cut leaves the old file or the new one.
    """
    path = Path(path)
    partial = partial_path(path)
    options: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    with discarded_at_exit(partial):
        with open(partial, mode.replace("w", "x"), **options) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
        if durable:
            _fsync(path.parent)


@contextlib.contextmanager
def discarded_at_exit(partial: Path) -> Iterator[Path]:
    """While entered, `partial` (a file or a folder) is removed when the process is told to stop; at the end it is
    removed, too, unless it has got another name by then."""
    with _exiting:
        _open_partials.add(partial)
    try:
        yield partial
    finally:
        with _exiting:  # for good where the process is ending: what fails because `partial` is gone is no failure
            _remove(partial)
            _open_partials.discard(partial)


def discard_partials() -> None:
    """Remove what this process is writing: it is about to exit, and other threads begin nothing new."""
    _exiting.acquire()
    for partial in list(_open_partials):
        with contextlib.suppress(OSError):
            _remove(partial.rename(partial_path(partial)))  # nobody puts anything into a folder that is gone


@contextlib.contextmanager
def temporary_folder(parent: StrPath | None = None) -> Iterator[Path]:
    """A new folder in `parent` (default: the system's temporary one) that goes when the block or the process ends.

    A process that is killed by SIGKILL leaves its folder; the next that makes one in `parent` removes it. Each holds a
    lock on its own, which the kernel lets go of.
    """
    prefix = _TEMPORARY if parent is None else f"{_PARTIAL}{_TEMPORARY}"
    parent = Path(tempfile.gettempdir() if parent is None else parent)
    for left in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError), _locked(left, wait=False):
            shutil.rmtree(left)
    with contextlib.ExitStack() as stack:
        while True:
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            with contextlib.suppress(FileNotFoundError):  # taken for one that was left, before it was locked
                stack.enter_context(_locked(folder))
                if folder.exists():
                    break
        yield stack.enter_context(discarded_at_exit(folder))


@contextlib.contextmanager
def _locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a folder. Where there are no locks: with `wait` do without, else raise OSError."""
    if fcntl is None:
        if wait:
            yield
            return
        raise OSError(errno.ENOLCK, "no locks here")
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            if not wait:
                raise
        yield
    finally:
        os.close(descriptor)


def _remove(partial: Path) -> None:
    if partial.is_dir():
        shutil.rmtree(partial)
    else:
        partial.unlink(missing_ok=True)


def remove_partial(folder: StrPath) -> None:
    """Remove what processes that were killed while writing into `folder` have left there. Only for a folder that no
    other process writes to."""
    for path in Path(folder).glob(f"{_PARTIAL}*"):
        _remove(path)


def write_text(path: StrPath, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with replacing(path) as file:
        file.write(text)


def writable_folder(path: StrPath) -> Path:
    """Create folder `path` and prove that a file can be written there. Raises UserError."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot write there: {error.strerror or error}") from error
    return path


def claim(paths: Iterable[StrPath], overwrite: bool) -> None:
    """Decide that these outputs may be written. Raises UserError naming the one that is there already (unless
    `overwrite`), that is a folder, or that two inputs would write."""
    seen = set()
    for path in map(Path, paths):
        if path in seen:
            raise UserError(f"{path}: two inputs would both write it: predict them apart")
        seen.add(path)
        try:
            if path.is_dir():
                raise UserError(f"{path}: a folder is in the way of this output")
            exists = path.exists()
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            exists = False  # writing it will fail, and be said
        if exists and not overwrite:
            raise UserError(f"{path} is there already: --overwrite replaces it, --output_dir names another folder")


@contextlib.contextmanager
def linked(path: StrPath) -> Iterator[Path]:
    """A link to `path` of which the whole name is letters, digits and a few signs, for libraries that want that."""
    path = Path(path)
    with temporary_folder() as folder:
        link = folder / f"link{path.suffix}"
        link.symlink_to(path.resolve())
        yield link


# What file systems answer that cannot flush a folder (SMB, FUSE, those of virtual machines). EIO is no such answer.
_NO_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EBADF)


def _fsync(folder: StrPath) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FLUSH:
            raise
    finally:
        os.close(descriptor)
