"""A sign of life that other hosts can see: a file in the record that says who writes there, and that a thread touches.

Whether a process still runs can be asked on its own host only (`process.is_alive`). A sweep that is launched again from
another host of a cluster must neither start a job that runs there already nor wait for one that died.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .process import is_alive, this_process

SIGN = ".alive"
EVERY_S = 30.0
"""Seconds between two touches."""
SILENT_S = 180.0
"""After so many seconds without one a process of another host counts as dead. Network file systems may show a change a
minute late."""


def claim(directory: Path) -> Mapping[str, Any] | None:
    """Make the sign of a record this process's; None if it is, otherwise who holds it (empty where it cannot be read).

    Of two processes that begin at once only one gets it. The sign of a dead process is taken over.

    Raises:
        OSError: the sign can be neither written nor removed.
    """
    sign, me = directory / SIGN, this_process()
    held: Mapping[str, Any] | None = None
    for _ in range(3):
        try:
            file = sign.open("x", encoding="utf-8")
        except FileExistsError:
            held = _holder(sign)
            if held == me:
                return None
            if lives(held, silence(directory)):
                return held
            sign.unlink(missing_ok=True)
            continue
        try:
            with file:
                json.dump(me, file)
        except OSError:  # on a full disk there is room for a name, but not for what it holds
            sign.unlink(missing_ok=True)
            raise
        return None
    return held


def _holder(sign: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(sign.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def lives(process: object, silent: float | None) -> bool | None:
    """Whether a process still runs: as this host knows it, or by its signs; None where nothing can be told.

    Args:
        silent: seconds since its last sign of life, None without any.
    """
    known = is_alive(process)
    return known if known is not None or silent is None else silent <= SILENT_S


@contextmanager
def beating(directory: Path, every: float = EVERY_S) -> Iterator[None]:
    """Inside the block the claimed sign is renewed; afterwards it is gone, as it is not after SIGKILL."""
    sign, ended = directory / SIGN, threading.Event()

    def beat() -> None:
        while not ended.wait(every):
            # A disk that hiccups is no reason to end the job; the next beat comes.
            with suppress(OSError):
                sign.touch()

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        release(directory)


def release(directory: Path) -> None:
    """Remove the sign if it is this process's."""
    sign = directory / SIGN
    with suppress(OSError):
        if _holder(sign) == this_process():
            sign.unlink()


def silence(directory: Path, probe: bool = True) -> float | None:
    """Seconds since the last sign of life in a record; None where there is no sign.

    Args:
        probe: ask the file system for the time, by writing a file beside the sign: the clocks of two hosts may differ.
            Without it, or where nothing can be written, this host's clock has to do.
    """
    try:
        beat = (directory / SIGN).stat().st_mtime
    except OSError:
        return None
    return (_now(directory) if probe else time.time()) - beat


def _now(directory: Path) -> float:
    file = directory / f"{SIGN}.{uuid.uuid4().hex}"
    try:
        file.touch()
        return file.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with suppress(OSError):
            file.unlink()
