"""A shared hold on an entry of the cache, for as long as a process reads it: what cleaning must leave alone.

The hold is the operating system's and ends with the process, however that ends.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

MARK = "in_use.lock"
"""File of an entry that is locked; its time of modification is when the entry was last opened."""


def hold(directory: Path) -> BinaryIO | None:
    """Hold an entry until the returned file is closed; None where it cannot be written or the system has no such locks
    (then nothing but age protects it)."""
    try:
        mark = (directory / MARK).open("ab")
    except OSError:
        return None
    with suppress(OSError):
        os.utime(mark.fileno())
    _lock(mark, shared=True)
    return mark


@contextmanager
def alone(directory: Path) -> Iterator[bool]:
    """Whether no other process holds the entry; while the block runs none can begin to."""
    try:
        mark = (directory / MARK).open("ab")
    except OSError:
        yield True
        return
    with mark:
        yield _lock(mark, shared=False)


def _lock(mark: BinaryIO, *, shared: bool) -> bool:
    if sys.platform == "win32":
        return True
    import fcntl

    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(mark, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
