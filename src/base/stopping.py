"""Handles SIGTERM, SIGINT and SIGHUP: removes partial files and child processes, then exits. Training finishes its
step and saves first."""

import contextlib
import ctypes
import functools
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from typing import NoReturn, TypeVar

from src.base.files import discard_partials

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


class Stopped(Exception):
    """Training received the signal `signal_number`, saved its state and stops."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


class StopRequest:
    """Waits for signals in its own threads. `signal_number` is the signal received, or 0.

    A Python signal handler would run only between two steps. Python writes SIGTERM and SIGHUP to a pipe immediately,
    and a thread reads them there. SIGINT is blocked and a thread waits for it, because MindSpore's own handler turns it
    into SIGTERM. SIGTERM and SIGHUP are not blocked: child processes would inherit that and could not be ended. A
    signal that the process ignores from the start, as under nohup, stays ignored.

    Create it before importing MindSpore, whose threads must inherit the blocked SIGINT.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self._deferred = False
        self._watched = {number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN}
        if not hasattr(signal, "pthread_sigmask"):  # Windows
            self._watched = set()
        blocked = self._watched & {signal.SIGINT}
        handled = self._watched - blocked
        if blocked:
            signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
            self._start(functools.partial(signal.sigwait, blocked))
        if handled:
            reading, writing = os.pipe()
            os.set_blocking(writing, False)
            signal.set_wakeup_fd(writing)
            for number in handled:
                signal.signal(number, lambda *_: None)
                signal.siginterrupt(number, False)
            self._start(lambda: os.read(reading, 1)[0])
        if self._watched:
            os.register_at_fork(after_in_child=self._forget)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within this context the first signal only sets `signal_number`. Outside it, a signal exits at once."""
        if signal.SIGINT in self._watched:
            # Starting the tracker unblocks SIGINT. Start it now and block SIGINT again; CANN's compiler would start it
            # later.
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _start(self, wait: Callable[[], int]) -> None:
        threading.Thread(target=self._watch, args=(wait,), daemon=True).start()

    def _watch(self, wait: Callable[[], int]) -> NoReturn:
        while True:
            number = wait()
            if number not in self._watched:  # another signal that has a Python handler
                continue
            if self.signal_number or not self._deferred:
                for child in multiprocessing.active_children():
                    child.kill()
                discard_partials()
                os._exit(128 + (self.signal_number or number))  # files under their final names are complete
            self.signal_number = number
            logger.info("%s: finishing this step, then saving", signal.Signals(number).name)

    def _forget(self) -> None:
        """Restore the default signal handlers in a forked child."""
        signal.set_wakeup_fd(-1)
        for number in self._watched:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._watched)


def in_processes(function: Callable[[T], R], jobs: Iterable[T], processes: int | None = None) -> Iterator[R]:
    """Run `function` on each job in a pool of processes, and yield its results in order of completion.

    The processes end with this one, even if it is killed.

    Args:
        function: called with one job.
        jobs: its arguments.
        processes: number of processes. Default: one per processor.

    Raises whatever `function` raises, and ChildProcessError if a process was killed from outside.
    """
    with ProcessPoolExecutor(processes, initializer=_end_with, initargs=(os.getpid(),)) as pool:
        try:  # not `pool.map`: if a process dies, it cancels the other jobs and hangs in Python 3.11
            for future in as_completed([pool.submit(function, job) for job in jobs]):
                yield future.result()
        except BrokenProcessPool as error:
            time.sleep(1)  # if the whole group got a signal, this process ends here
            raise ChildProcessError("a process of the pool was ended from outside: too little memory?") from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _end_with(parent: int) -> None:
    """Make this process of the pool end when its parent ends, even by SIGKILL."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent has ended already
            os._exit(1)
