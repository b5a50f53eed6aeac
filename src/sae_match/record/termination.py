"""Turning signals into exceptions, so that a killed job still writes its state, and losing neither them nor Ctrl-C."""

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
    """The process was asked to end by a signal; the exit code is the shell's 128 + its number."""

    def __init__(self, signum: int = signal.SIGTERM) -> None:
        super().__init__(128 + signum)
        self.signum = signum

    def __str__(self) -> str:
        told = "received " + signal.Signals(self.signum).name
        if self.signum != signal.SIGUSR2:
            return told
        return f"{told}: Slurm's time limit (hydra.launcher.timeout_min) is near, or the job is preempted; launch again"


def _terminate(signum: int, frame: FrameType | None) -> None:
    # A second one must not cut short the writing of the record that the first one starts.
    signal.signal(signum, signal.SIG_IGN)
    raise Terminated(signum)


@contextmanager
def signals_raise(*signals: signal.Signals) -> Iterator[None]:
    """Inside the block each of the signals raises `Terminated`; outside, whatever held before holds again.

    Python drops an exception that is raised inside a callback from C (of a compiler, a finalizer); inside the block
    such a `Terminated` or KeyboardInterrupt is raised anew a moment later. Python allows signal handlers in the main
    thread only; elsewhere the block changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous, hook = {one: signal.signal(one, _terminate) for one in signals}, sys.unraisablehook

    def raise_again(lost: Any) -> None:
        if not isinstance(lost.exc_value, Terminated | KeyboardInterrupt):
            hook(lost)
            return
        number: int = signal.SIGINT
        if isinstance(lost.exc_value, Terminated):
            number = lost.exc_value.signum
            signal.signal(number, _terminate)
        # A real signal, to the main thread, so that it also ends a system call that blocks.
        timer = threading.Timer(AGAIN_SECONDS, signal.pthread_kill, [threading.main_thread().ident, number])
        timer.daemon = True
        timer.start()

    sys.unraisablehook = raise_again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for one, handler in previous.items():
            # None: the previous handler was not installed from Python and cannot be put back from it.
            signal.signal(one, signal.SIG_DFL if handler is None else handler)
