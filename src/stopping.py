"""SIGTERM, SIGINT and SIGHUP: leave nothing half-written; while training, finish the step and save first."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from typing import NoReturn

from src.files import discard_partials

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))

logger = logging.getLogger(__name__)


class Stopped(Exception):
    """Training was asked to stop and has saved its state; `signal_number` is the signal that asked."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


class StopRequest:
    """Waits for the signals in a thread of its own; `signal_number` is the one that came, 0 is none.

    A Python signal handler would not do: it runs only between two steps, and MindSpore turns SIGINT into SIGTERM.
    To be made before MindSpore is imported: its threads must inherit that the signals are blocked. A signal that the
    process was started to ignore, as nohup does with SIGHUP, stays ignored.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self._deferred = False
        watched = {number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN}
        if watched and hasattr(signal, "pthread_sigmask"):  # not on Windows
            signal.pthread_sigmask(signal.SIG_BLOCK, watched)
            threading.Thread(target=self._wait, args=(watched,), daemon=True).start()

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """While entered, the first signal is only noted; at any other time it exits at once."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _wait(self, watched: set[signal.Signals]) -> NoReturn:
        while True:
            number = signal.sigwait(watched)
            if self.signal_number or not self._deferred:
                discard_partials()
                os._exit(128 + (self.signal_number or number))  # what has its name is complete
            self.signal_number = number
            logger.info("%s: finishing this step, then saving", signal.Signals(number).name)
