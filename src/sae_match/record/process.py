"""Which process writes a record, and whether it is still there: a job killed by SIGKILL cannot say so itself."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import psutil

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def this_process() -> dict[str, Any]:
    """What identifies this process among all that ever ran: pid, host, boot, and when it began."""
    pid = os.getpid()
    return {"pid": pid, "host": socket.gethostname(), "boot": _boot(), "born": _born(pid)}


def is_alive(process: object) -> bool | None:
    """Whether the process that `this_process` described still runs; None where that cannot be told from here (it runs,
    or ran, on another host, or is not described)."""
    if not isinstance(process, Mapping) or process.get("host") != socket.gethostname():
        return None
    if process.get("boot") != _boot():
        return False
    pid = process.get("pid")
    return isinstance(pid, int) and pid > 0 and _born(pid) == process.get("born") is not None


@cache
def _boot() -> str:
    """Changes with every start of the machine."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return str(int(psutil.boot_time()))


def _born(pid: int) -> str | None:
    """Start of a process; None where there is none, or only what is left of it for its parent to collect.

    On Linux in clock ticks since boot: a wall clock that is set back must not make a live process look dead.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return _born_elsewhere(pid) if not Path("/proc/self/stat").exists() else None
    except OSError:
        return _born_elsewhere(pid)
    # The name, in parentheses, may hold anything; the fields behind it begin with the third, the state.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def _born_elsewhere(pid: int) -> str | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.0f}"
    except psutil.Error:
        return None
