"""SIGTERM and SIGINT while training: the first one finishes the step and saves, the second one exits at once."""

import contextlib
import logging
import os
import signal
import threading

SIGNALS = (signal.SIGTERM, signal.SIGINT)

logger = logging.getLogger(__name__)


class Stopped(Exception):
    """Training was asked to stop and has saved its state; `signal_number` is the signal that asked."""

    def __init__(self, signal_number):
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


class StopRequest:
    """Waits for the signals in a thread of its own; `signal_number` is the one that came, 0 is none.

    A Python signal handler would not do: it runs only between two steps, and MindSpore turns SIGINT into SIGTERM.
    To be made before MindSpore is imported: its threads must inherit that the signals are blocked.
    """

    def __init__(self):
        self.signal_number = 0
        self._deferred = False
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=self._wait, daemon=True).start()

    @contextlib.contextmanager
    def deferred(self):
        """While entered, the first signal is only noted; at any other time it exits at once."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _wait(self):
        while True:
            number = signal.sigwait(SIGNALS)
            if self.signal_number or not self._deferred:
                os._exit(128 + number)  # nothing is half-written: files take their names when they are complete
            self.signal_number = number
            logger.info("%s: finishing this step, then saving", signal.Signals(number).name)
