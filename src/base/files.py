"""Writes files atomically, removes partial files, and escapes file names."""

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

_PARTIAL = ".partial-"  # followed by random characters, so that processes writing the same file do not collide
_TEMPORARY = "depthnet-temporary-"

_open_partials: set[Path] = set()
_exiting = threading.Lock()


def printable(name: object) -> str:
    """Return a file name as printable text: bytes that are not UTF-8 and control characters become \\xNN."""

    def escaped(letter: str) -> str:
        if letter.isprintable():
            return letter
        byte = ord(letter) - 0xDC00  # surrogateescape: Python's form of a byte that is not UTF-8
        return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else letter.encode("unicode_escape").decode()

    return "".join(map(escaped, str(name)))


def partial_path(path: StrPath, ending: str = "") -> Path:
    """Return a new hidden path in the folder of `path`, for a file that is not complete yet."""
    return Path(path).parent / f"{_PARTIAL}{secrets.token_hex(6)}{ending}"


@contextlib.contextmanager
def replacing(path: StrPath, mode: str = "w", durable: bool = True) -> Iterator[IO[Any]]:
    """Open a temporary file in the folder of `path`. It replaces `path` if the block succeeds, else it is removed.

    Args:
        path: the file to write.
        mode: "w" for UTF-8 text, "wb" for bytes.
        durable: flush to disk (fsync) before replacing, so that a power cut leaves the old file or the new one.
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
    """Remove `partial`, a file or a folder, when the block or the process ends, unless it has been renamed by then."""
    with _exiting:
        _open_partials.add(partial)
    try:
        yield partial
    finally:
        with _exiting:  # blocks for ever if the process is exiting, so that no error about removed files is reported
            _remove(partial)
            _open_partials.discard(partial)


def discard_partials() -> None:
    """Remove all partial files of this process, which is about to exit. Other threads can start no new files then."""
    _exiting.acquire()
    for partial in list(_open_partials):
        with contextlib.suppress(OSError):
            _remove(partial.rename(partial_path(partial)))  # renamed first: no thread can add files to it


@contextlib.contextmanager
def temporary_folder(parent: StrPath | None = None) -> Iterator[Path]:
    """Create a folder in `parent` (default: the system's temporary folder); remove it when the block or process ends.

    A process killed by SIGKILL leaves its folder. The next call with the same `parent` removes it: each process locks
    its folder, and the kernel releases the lock of a dead process.
    """
    prefix = _TEMPORARY if parent is None else f"{_PARTIAL}{_TEMPORARY}"
    parent = Path(tempfile.gettempdir() if parent is None else parent)
    for leftover in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError), _locked(leftover, wait=False):
            shutil.rmtree(leftover)
    with contextlib.ExitStack() as stack:
        while True:
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            with contextlib.suppress(FileNotFoundError):  # another process removed it before it was locked
                stack.enter_context(_locked(folder))
                if folder.exists():
                    break
        yield stack.enter_context(discarded_at_exit(folder))


@contextlib.contextmanager
def _locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a folder.

    Args:
        folder: an existing folder.
        wait: wait while another process holds the lock, and continue without it where locks are not supported. If
            False, raise OSError in both cases.
    """
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
    """Remove partial files that killed processes left in `folder`. No other process may be writing to it."""
    for path in Path(folder).glob(f"{_PARTIAL}*"):
        _remove(path)


def write_text(path: StrPath, text: str) -> None:
    """Write `text` to `path` atomically."""
    with replacing(path) as file:
        file.write(text)


def writable_folder(path: StrPath) -> Path:
    """Create folder `path` and check that a file can be written there. Raises UserError if not."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot write there: {error.strerror or error}") from error
    return path


def claim(paths: Iterable[StrPath], overwrite: bool) -> None:
    """Check that output paths may be written.

    Raises UserError naming a path that exists (unless `overwrite`), is a folder, or occurs twice.
    """
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
            exists = False  # writing the file will raise the error
        if exists and not overwrite:
            raise UserError(f"{path} is there already: --overwrite replaces it, --output_dir names another folder")


@contextlib.contextmanager
def linked(path: StrPath) -> Iterator[Path]:
    """Create a temporary link to `path` with a plain ASCII name, for libraries that reject other names."""
    path = Path(path)
    with temporary_folder() as folder:
        link = folder / f"link{path.suffix}"
        link.symlink_to(path.resolve())
        yield link


# Errors by which file systems report that they cannot flush a folder (SMB, FUSE, virtual machines). EIO is not among
# them: it is a real failure.
_NO_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EBADF)


def _fsync(folder: StrPath) -> None:
    """Flush a folder's entries to disk, where the file system can."""
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
