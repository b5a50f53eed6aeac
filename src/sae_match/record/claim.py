"""Which process writes a record. Never two at once, and of several that take over from a dead one exactly one.

A claim is a file .claim.N that describes its process. Whoever finds the newest one, N, dead creates N + 1, which the
file system grants to one process only. The holder locks its file, which on its own host shows whether it lives; other
hosts, which may not see locks, ask Slurm, and otherwise go by the file's time of modification, which a thread renews.
"""

from __future__ import annotations

import _thread
import json
import os
import re
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ..errors import UserError
from ..files import read_json_object, try_lock
from . import slurm

CLAIM = ".claim"
BEAT_S = 30.0
"""Seconds between two heartbeats."""
STALE_S = 180.0
"""A process of another host counts as dead after so many seconds without one. Network file systems may show a change a
minute late."""

_held: dict[Path, tuple[Claim, TextIO]] = {}
"""Claims of this process by directory, with the open files that hold their locks."""


class RecordTakenError(UserError):
    """Another process writes the record."""


@dataclass(frozen=True)
class Claim:
    """A claim as its file shows it.

    Attributes:
        holder: the process, as `this_process` describes it; empty for a moment after the file is created.
    """

    path: Path
    holder: Mapping[str, Any]

    @property
    def number(self) -> int:
        """Place in the order of claims, from 1."""
        return int(self.path.suffix[1:])

    def alive(self, probe: bool = True) -> bool:
        """Whether its process still writes the record.

        Args:
            probe: as for `age`.
        """
        job, mine = self.holder.get("slurm"), slurm.this_job()
        if _is_earlier_attempt(job, mine):
            return False
        if self.holder.get("host") == socket.gethostname():
            with suppress(OSError), self.path.open("rb") as file:  # a colleague's may not be opened
                free = try_lock(file, shared=True)
                if free is not None:
                    return not free
        if slurm.is_gone(job):
            return False
        age = self.age(probe)
        return age is not None and age <= STALE_S

    def age(self, probe: bool = True) -> float | None:
        """Seconds since the last heartbeat; None where the file is gone.

        Args:
            probe: take the file system's time, by writing a file there: the clocks of two hosts may differ. Without it,
                or where nothing can be written, this host's clock has to do.
        """
        try:
            last = self.path.stat().st_mtime
        except OSError:
            return None
        if probe:
            file = self.path.with_name(f"{CLAIM}.{uuid.uuid4().hex}")
            with suppress(OSError):
                file.touch()
                try:
                    return file.stat().st_mtime - last
                finally:
                    file.unlink()
        return time.time() - last


def this_process() -> dict[str, Any]:
    """This process: pid, host, and which attempt of which Slurm job it is."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "slurm": slurm.this_job()}


def _is_earlier_attempt(job: object, mine: object) -> bool:
    """Slurm starts a job again, with another RESTART_COUNT, when it has given up the earlier attempt."""
    if not isinstance(job, Mapping) or not isinstance(mine, Mapping):
        return False
    return job != mine and {**job, "RESTART_COUNT": None} == {**mine, "RESTART_COUNT": None}


def newest_claim(directory: Path) -> Claim | None:
    """The claim that counts; None where no process has one."""
    claims = _claims(directory)
    return claims[-1] if claims else None


def _claims(directory: Path) -> list[Claim]:
    """The claims in a directory, the oldest first."""
    paths = [path for path in directory.glob(f"{CLAIM}.*") if re.fullmatch(r"\.\d{1,9}", path.suffix)]
    return sorted((Claim(path, read_json_object(path) or {}) for path in paths), key=lambda claim: claim.number)


def claim(directory: Path) -> Claim | None:
    """Make a record this process's; None if it is, otherwise the claim of the process that has it.

    Raises:
        OSError: the claim cannot be written.
    """
    place = directory.absolute()
    if owns(place):
        return None
    before = _claims(place)
    newest = before[-1] if before else None
    if newest is not None and newest.alive():
        return newest
    path = place / f"{CLAIM}.{1 if newest is None else newest.number + 1}"
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError:
        return Claim(path, read_json_object(path) or {})
    holder = {**this_process(), "token": uuid.uuid4().hex}
    try:
        try_lock(file, shared=False)
        json.dump(holder, file)
        file.flush()
        os.fsync(file.fileno())  # it stays open, and other hosts of a network file system must see it
    except BaseException:  # on a full disk there is room for a name, but not for what it holds
        path.unlink()
        file.close()
        raise
    _held[place] = (Claim(path, holder), file)
    for other in _claims(place):
        # Between this process's look and its claim one may have taken over, ended and left the place to a third one:
        # whichever of the two looks later leaves.
        if other.path != path and other not in before and other.alive():
            release(place)
            return other
        if other.path != path:
            other.path.unlink(missing_ok=True)
    return None


def owns(directory: Path) -> bool:
    """Whether the record is this process's. A process that stood still for minutes, or that Slurm took for gone, may
    have been replaced meanwhile, and must write no more."""
    place = directory.absolute()
    if place not in _held:
        return False
    own = _held[place][0]
    try:
        return own.holder == json.loads(own.path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError):  # a failing disk says nothing
        return True


def release(directory: Path) -> None:
    """Let go of a record, if it is this process's."""
    place = directory.absolute()
    mine = owns(place)
    held = _held.pop(place, None)
    if held is not None:
        with suppress(OSError):
            if mine:
                held[0].path.unlink()
        held[1].close()


@contextmanager
def heartbeat(directory: Path, every: float = BEAT_S) -> Iterator[None]:
    """Inside the block the claim on a record is renewed; afterwards the record is released.

    Where another process has taken the record, SIGTERM's handler is called in the main thread, if there is one.
    """
    ended = threading.Event()
    path = _held[directory.absolute()][0].path

    def beat() -> None:
        while not ended.wait(every):
            if not owns(directory):
                _thread.interrupt_main(signal.SIGTERM)
                return
            with suppress(OSError):  # a failing disk is no reason to end the job; the next beat comes
                os.utime(path)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        release(directory)
