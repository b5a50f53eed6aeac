"""A sign of life that other hosts can see: a file in the record that a thread touches while the job runs.

Whether a process still runs can be asked on its own host only (`process.is_alive`). A sweep that is launched again from
another host of a cluster must neither start a job that runs there already nor wait for one that died.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SIGN = ".alive"
EVERY_S = 30.0
"""Seconds between two touches."""
SILENT_S = 600.0
"""After so many seconds without one a job counts as dead. Generous, for clocks that differ between hosts and file
systems that show a change late."""


@contextmanager
def beating(directory: Path, every: float = EVERY_S) -> Iterator[None]:
    """Inside the block the sign in `directory` is renewed; afterwards it is gone, as it is not after SIGKILL."""
    sign, ended = directory / SIGN, threading.Event()

    def beat() -> None:
        while not ended.wait(every):
            # A disk that hiccups is no reason to end the job; the next beat comes.
            with suppress(OSError):
                sign.touch()

    sign.touch()
    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(OSError):
            sign.unlink()


def silence(directory: Path) -> float | None:
    """Seconds since the last sign of life in a record, by this host's clock; None where there is no sign."""
    try:
        return time.time() - (directory / SIGN).stat().st_mtime
    except OSError:
        return None
