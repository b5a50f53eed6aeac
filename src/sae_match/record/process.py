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
    """What identifies this process among all that ever ran: pid, host, boot, and when it began; in which of the host's
    spaces of process numbers (containers have their own), and as which attempt of which Slurm job."""
    pid = os.getpid()
    slurm = {name: os.environ.get(f"SLURM_{name}") for name in ("JOB_ID", "PROCID", "RESTART_COUNT")}
    return {
        "pid": pid,
        "host": socket.gethostname(),
        "boot": _boot(),
        "born": _born(pid),
        "space": _space(),
        "slurm": slurm if slurm["JOB_ID"] else None,
    }


def is_alive(process: object) -> bool | None:
    """Whether the process that `this_process` described still runs; None where that cannot be told from here (it runs,
    or ran, on another host or in another container, or is not described)."""
    if not isinstance(process, Mapping):
        return None
    if _is_earlier_attempt(process.get("slurm")):
        return False
    if process.get("host") != socket.gethostname() or process.get("space", _space()) != _space():
        return None
    if not _same_boot(process.get("boot")):
        return False
    pid = process.get("pid")
    return isinstance(pid, int) and pid > 0 and _born(pid) == process.get("born") is not None


def _is_earlier_attempt(slurm: object) -> bool:
    """Whether Slurm has started this process in the place of that one: it requeues a job when the other is gone."""
    mine = this_process()["slurm"]
    if not isinstance(slurm, Mapping) or mine is None:
        return False
    same = all(slurm.get(name) == mine[name] for name in ("JOB_ID", "PROCID"))
    return same and slurm.get("RESTART_COUNT") != mine["RESTART_COUNT"]


@cache
def _space() -> str | None:
    """The space of process numbers: one pid in two of them is not one process. None where there is but one."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _same_boot(boot: object) -> bool:
    """Seconds since the epoch, as where there is no identifier, may be told a little differently each time."""
    own = _boot()
    if isinstance(boot, str) and boot.isdigit() and own.isdigit():
        return abs(int(boot) - int(own)) <= 5
    return boot == own


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
