"""Signals that meet a callback from C, where Python drops exceptions."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

import pytest

from sae_match.record.termination import Terminated, signals_raise


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_inside_a_callback_is_not_lost(number: signal.Signals, error: type[BaseException]) -> None:
    calls, began = [], time.monotonic()

    def callback() -> None:
        calls.append(1)
        os.kill(os.getpid(), number)

    hook, before = sys.unraisablehook, signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(error), signals_raise(signal.SIGTERM):
            ctypes.CFUNCTYPE(None)(callback)()
            calls.append(2)  # the callback swallowed it
            time.sleep(30)
    finally:
        signal.signal(signal.SIGINT, before)
    assert calls == [1, 2]
    assert time.monotonic() - began < 20  # it does not wait for the system call to return
    assert sys.unraisablehook is hook
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_other_dropped_exceptions_go_their_way(capsys: pytest.CaptureFixture[str]) -> None:
    def callback() -> None:
        raise ValueError("of no interest")

    seen: list[object] = []
    old, sys.unraisablehook = sys.unraisablehook, lambda lost: seen.append(lost.exc_value)
    try:
        with signals_raise(signal.SIGTERM):
            ctypes.CFUNCTYPE(None)(callback)()
    finally:
        sys.unraisablehook = old
    assert [str(error) for error in seen] == ["of no interest"]


def test_signals_are_told_apart_and_the_outer_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGUSR2)
    outer, inner = signals_raise(signal.SIGTERM, signal.SIGUSR2), signals_raise(signal.SIGTERM)
    with pytest.raises(Terminated) as caught, outer, inner:
        os.kill(os.getpid(), signal.SIGUSR2)
    assert (caught.value.signum, caught.value.code) == (signal.SIGUSR2, 128 + signal.SIGUSR2)
    assert "time limit" in str(caught.value)
    assert signal.getsignal(signal.SIGUSR2) == before
