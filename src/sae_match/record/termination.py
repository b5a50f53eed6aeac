"""Turning SIGTERM into an exception, so that a killed job still writes its state."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)


class Terminated(SystemExit):
    """The process was asked to end (SIGTERM); the exit code is the shell's 128 + 15."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)

    def __str__(self) -> str:
        return "received SIGTERM"


def _terminate(signum: int, frame: FrameType | None) -> None:
    # A second SIGTERM must not cut short the writing of the record that the first one starts.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Inside the block SIGTERM raises `Terminated`; outside, whatever held before holds again.

    Python allows signal handlers in the main thread only; elsewhere the block changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        log.debug("not in the main thread: SIGTERM keeps its meaning")
        yield
        return
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        # None: the previous handler was not installed from Python and cannot be put back from it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)
