"""SIGTERM, SIGINT and SIGHUP: leave nothing half-written, and no process; while training, finish the step and save
first."""

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
    """Training was asked to stop and has saved its state; `signal_number` is the signal that asked."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


class StopRequest:
    """Notes the signals in threads of its own; `signal_number` is the one that came, 0 is none.

    A Python signal handler would not do: it runs only between two steps. SIGTERM and SIGHUP reach their thread through
    a pipe that Python writes to at once. SIGINT is blocked and waited for: MindSpore's own handler turns it into
    SIGTERM. The others are not blocked, for a child that inherits that cannot be ended by them. A signal that the
    process was started to ignore, as nohup does with SIGHUP, stays ignored.

    To be made before MindSpore is imported: its threads must inherit that SIGINT is blocked.
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
        """While entered, the first signal is only noted; at any other time it exits at once."""
        if signal.SIGINT in self._watched:
            # Starting it unblocks SIGINT; a pool that CANN's compiler starts ("forkserver") would do that later.
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
                os._exit(128 + (self.signal_number or number))  # what has its name is complete
            self.signal_number = number
            logger.info("%s: finishing this step, then saving", signal.Signals(number).name)

    def _forget(self) -> None:
        """In a child: the signals end it, and tell its parent nothing."""
        signal.set_wakeup_fd(-1)
        for number in self._watched:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._watched)


def in_processes(function: Callable[[T], R], jobs: Iterable[T], processes: int | None = None) -> Iterator[R]:
    """Yield what `function` returns for each job, as they are done, in processes (default: one a processor) that end
    with this one, however it ends.

    Raises what `function` raises, and ChildProcessError when one of the processes was ended by something else.
    """
    with ProcessPoolExecutor(processes, initializer=_end_with, initargs=(os.getpid(),)) as pool:
        try:  # no `pool.map`: it cancels what is left when a process has ended, and then Python 3.11 waits for ever
            for future in as_completed([pool.submit(function, job) for job in jobs]):
                yield future.result()
        except BrokenProcessPool as error:
            time.sleep(1)  # a signal to the whole group is this process' end, too
            raise ChildProcessError("a process of the pool was ended from outside: too little memory?") from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _end_with(parent: int) -> None:
    """In a process of the pool: end when the parent does, were it by SIGKILL."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has ended already
            os._exit(1)
