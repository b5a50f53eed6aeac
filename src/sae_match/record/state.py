"""The state of a job as its directory shows it, and whether the process that writes there still runs.

A job killed by SIGKILL cannot record it. On its own host its lock is then free. Other hosts, which may not see locks,
go by its heartbeat, a file with the process in it, which a thread touches; so does a file system without locks.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

STATUS, HEARTBEAT, LOCK = "status.json", ".alive", ".alive.lock"
BEAT_S = 30.0
"""Seconds between two heartbeats."""
STALE_S = 180.0
"""A process of another host counts as dead after so many seconds without one. Network file systems may show a change a
minute late."""
TAKE_S = 1.0
"""How long to wait for a lock that another process may only be testing."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of file systems that have no locks, or no lock service."""

_held: dict[Path, FileLock] = {}
"""Locks of the records that this process writes."""


@dataclass(frozen=True)
class Status:
    """What is known of a job without reading its results.

    Attributes:
        state: running, done, failed or killed; a running job whose process is gone counts as killed.
        error: type and message of what ended it.
        key: content key of the job (`experiment.job_key`), None where an input could not be identified.
        science: hash of the scientific configuration alone (`record.configuration`).
        alive: its process runs on this host, or has a recent heartbeat on another.
        pid, host: that process.
        own: it is this process.
    """

    state: str
    error: Mapping[str, Any] | None = None
    seconds: float | None = None
    key: str | None = None
    science: str | None = None
    alive: bool = False
    pid: int | None = None
    host: str | None = None
    own: bool = False


def read_status(directory: Path) -> Status | None:
    """The status of the record in a directory; None where there is none that can be read."""
    try:
        content = json.loads((directory / STATUS).read_text(encoding="utf-8"))
        return interpret(content, directory) if isinstance(content, dict) else None
    except (OSError, ValueError, KeyError):
        return None


def records_in(sweep: Path) -> Iterator[tuple[Path, Status]]:
    """The records directly below a sweep's directory, by name."""
    for path in sorted(sweep.glob(f"*/{STATUS}")):
        status = read_status(path.parent)
        if status is not None:
            yield path.parent, status


def interpret(status: Mapping[str, Any], directory: Path, probe: bool = True) -> Status:
    """What the content of a record's status.json means now.

    Args:
        probe: as for `heartbeat_age`.

    Raises:
        KeyError: it holds no state.
    """
    state, error = str(status["state"]), status.get("error")
    process: Mapping[str, Any] = status["process"] if isinstance(status.get("process"), Mapping) else {}
    alive = is_alive(process, directory, probe) if state == "running" else False
    if state == "running" and alive is False:
        message = f"process {process.get('pid')} on {process.get('host')} is gone"
        if (age := heartbeat_age(directory, probe)) is not None:
            message += f" (last heartbeat {age / 60:.0f} minutes ago)"
        state, error = "killed", {
            "type": "Killed", "message": f"{message}: SIGKILL, out of memory, or the machine went down",
        }  # fmt: skip
    return Status(
        state=state,
        error=error,
        **{name: status.get(name) for name in ("seconds", "key", "science")},
        alive=alive is True,
        **{name: process.get(name) for name in ("pid", "host")},
        own=state == "running" and directory.absolute() in _held,
    )


# -- the process behind a record -------------------------------------------------------------------------


def this_process() -> dict[str, Any]:
    """This process: pid, host, and which attempt of which Slurm job it is."""
    slurm = {name: os.environ.get(f"SLURM_{name}") for name in ("JOB_ID", "PROCID", "RESTART_COUNT")}
    return {"pid": os.getpid(), "host": socket.gethostname(), "slurm": slurm if slurm["JOB_ID"] else None}


def is_alive(process: Mapping[str, Any], directory: Path, probe: bool = True) -> bool | None:
    """Whether the process that `this_process` described still writes a record; None where nothing shows it.

    Args:
        probe: as for `heartbeat_age`.
    """
    me = this_process()
    if _is_earlier_attempt(process.get("slurm"), me["slurm"]):
        return False
    if process.get("host") == me["host"]:
        with suppress(OSError):  # of a file system without locks, or a lock of a colleague's job that may not be opened
            return _is_locked(directory)
    age = heartbeat_age(directory, probe)
    return None if age is None else age <= STALE_S


def _is_earlier_attempt(slurm: object, mine: object) -> bool:
    """Slurm starts a job again, with another RESTART_COUNT, when the earlier attempt is gone."""
    if not isinstance(slurm, Mapping) or not isinstance(mine, Mapping):
        return False
    return slurm != mine and {**slurm, "RESTART_COUNT": None} == {**mine, "RESTART_COUNT": None}


def _is_locked(directory: Path) -> bool:
    if directory.absolute() in _held:
        return True
    if not (directory / LOCK).exists():
        return False
    try:
        with FileLock(directory / LOCK, timeout=0):
            return False
    except Timeout:
        return True


def claim(directory: Path) -> Mapping[str, Any] | None:
    """Make a record this process's; None if it is, otherwise the process that has it (empty where unreadable).

    Of two processes that begin at once only one gets it. The record of a dead process is taken over.

    Raises:
        OSError: lock or heartbeat cannot be written.
    """
    place = directory.absolute()
    holder: Mapping[str, Any] = {}
    for _ in range(2):
        if place in _held or _take(place):
            return None
        holder = _holder(place)
        if is_alive(holder, place) is not False:
            break
        if holder.get("host") != socket.gethostname():  # a network file system may keep the lock of a host that is gone
            (place / LOCK).unlink(missing_ok=True)
    return holder


def _take(place: Path) -> bool:
    """Lock a record and write the first heartbeat; False where a living process has it."""
    lock, beat = FileLock(place / LOCK), place / HEARTBEAT
    try:
        lock.acquire(timeout=TAKE_S)
    except Timeout:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        holder = _holder(place)
        # Whose lock this process has just taken, on this host, is dead.
        if (lock.is_locked and holder.get("host") == socket.gethostname()) or is_alive(holder, place) is False:
            beat.unlink(missing_ok=True)
        with suppress(FileExistsError), beat.open("x", encoding="utf-8") as file:
            _held[place] = lock
            json.dump(this_process(), file)
            return True
    except BaseException:  # on a full disk there is room for a name, but not for what it holds
        release(place)
        raise
    finally:
        if place not in _held:
            lock.release()
    return False


def release(directory: Path) -> None:
    """Let go of a record, if it is this process's."""
    lock = _held.pop(directory.absolute(), None)
    if lock is not None:
        for name in (HEARTBEAT, LOCK):  # while it is locked: a process that waits for the lock file makes a new one
            with suppress(OSError):
                (directory / name).unlink()
        lock.release()


def _holder(directory: Path) -> Mapping[str, Any]:
    try:
        content = json.loads((directory / HEARTBEAT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@contextmanager
def heartbeat(directory: Path, every: float = BEAT_S) -> Iterator[None]:
    """Inside the block the heartbeat of a claimed record is renewed; afterwards the record is released."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(every):
            # A failing disk is no reason to end the job; the next beat comes.
            with suppress(OSError):
                os.utime(directory / HEARTBEAT)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        release(directory)


def heartbeat_age(directory: Path, probe: bool = True) -> float | None:
    """Seconds since the last heartbeat of a record; None where there is none.

    Args:
        probe: take the file system's time, by writing a file there: the clocks of two hosts may differ. Without it, or
            where nothing can be written, this host's clock has to do.
    """
    try:
        last = (directory / HEARTBEAT).stat().st_mtime
    except OSError:
        return None
    if probe:
        file = directory / f"{HEARTBEAT}.{uuid.uuid4().hex}"
        with suppress(OSError):
            file.touch()
            try:
                return file.stat().st_mtime - last
            finally:
                file.unlink()
    return time.time() - last
