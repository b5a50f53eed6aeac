"""Turning SIGTERM into an exception, so that a killed job still writes its state, and losing neither it nor Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

AGAIN_SECONDS = 0.1
"""After which a signal that was lost is raised anew."""


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

    Python drops an exception that is raised inside a callback from C (of a compiler, a finalizer); inside the block
    such a `Terminated` or KeyboardInterrupt is raised anew a moment later. Python allows signal handlers in the main
    thread only; elsewhere the block changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous, hook = signal.signal(signal.SIGTERM, _terminate), sys.unraisablehook

    def raise_again(lost: Any) -> None:
        if not isinstance(lost.exc_value, Terminated | KeyboardInterrupt):
            hook(lost)
            return
        number = signal.SIGINT
        if isinstance(lost.exc_value, Terminated):
            number = signal.SIGTERM
            signal.signal(signal.SIGTERM, _terminate)
        # A real signal, to the main thread, so that it also ends a system call that blocks.
        timer = threading.Timer(AGAIN_SECONDS, signal.pthread_kill, [threading.main_thread().ident, number])
        timer.daemon = True
        timer.start()

    sys.unraisablehook = raise_again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        # None: the previous handler was not installed from Python and cannot be put back from it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)
