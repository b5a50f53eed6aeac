"""Making room: which entries go, and removing them so that no reader meets half of one."""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from .entries import HUB, RESULTS, Entry

DEBRIS_AGE_SECONDS = 3600.0
"""Temporary files are written in one go: one that has not grown for so long has lost its writer."""
_HEX = "[0-9a-f]{32}"
_DEBRIS = re.compile(rf"\..*\.{_HEX}\.tmp.*|\.writable\.{_HEX}|\..+-{_HEX}|\.removed\.{_HEX}")
"""Names of `atomic_path`, `check_writable`, conversions of models, and of this module."""


def chosen(
    entries: Sequence[Entry], *, everything: bool, older_than: float | None, keep_under: int | None, now: float
) -> list[Entry]:
    """Entries to remove, the longest unused first.

    Args:
        everything: all of them.
        older_than: those not used for so many seconds.
        keep_under: beyond these, as many as it takes for the rest to have at most so many bytes.
    """
    left = sorted(entries, key=lambda entry: (entry.used, entry.name))
    gone = [e for e in left if everything or (older_than is not None and now - e.used > older_than)]
    if keep_under is not None:
        rest = [entry for entry in left if entry not in gone]
        size = sum(entry.size for entry in rest)
        for entry in rest:
            if size <= keep_under:
                break
            gone.append(entry)
            size -= entry.size
    return gone


def find_debris(cache: Path, now: float) -> list[Path]:
    """Temporary files and folders of processes that are gone."""
    return [
        path
        for path in sorted(cache.rglob(".*"))
        if _DEBRIS.fullmatch(path.name) and now - _age(path) > DEBRIS_AGE_SECONDS
    ]


def remove(entry: Entry) -> str | None:
    """Remove an entry unless a job uses it; why it stayed, or None."""
    try:
        if entry.kind == HUB:
            _remove_repository(entry.path)
            return None
        with _free(entry) as free:
            if not free:
                return "in use"
            discard(entry.path)
    except FileNotFoundError:
        return None  # another process was faster
    except OSError as error:
        return error.strerror or str(error)
    return None


def discard(path: Path) -> None:
    """Remove a file, or a folder in one step as far as readers see."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    aside = path.with_name(f".removed.{uuid.uuid4().hex}")
    os.rename(path, aside)
    shutil.rmtree(aside)


@contextmanager
def _free(entry: Entry) -> Iterator[bool]:
    """Whether no process writes or reads the entry; while the block runs none can begin to."""
    from filelock import FileLock, Timeout

    from sae_match.language_model.in_use import alone

    locks = {"residual_streams": entry.path / "capture.lock"} | {
        kind: entry.path.with_suffix(".lock") for kind in RESULTS
    }
    lock = locks.get(entry.kind)
    with ExitStack() as stack:
        try:
            # A lock file that nobody made is not made here: it would be left over.
            if lock is not None and lock.exists():
                stack.enter_context(FileLock(lock, timeout=0))
            yield not entry.path.is_dir() or stack.enter_context(alone(entry.path))
        except Timeout:
            yield False


def _remove_repository(path: Path) -> None:
    from huggingface_hub import scan_cache_dir

    cache = scan_cache_dir(path.parent)
    commits = [
        r.commit_hash for repository in cache.repos if Path(repository.repo_path) == path for r in repository.revisions
    ]
    cache.delete_revisions(*commits).execute()


def _age(path: Path) -> float:
    with suppress(OSError):
        newest = path.lstat().st_mtime
        for file in path.rglob("*") if path.is_dir() else ():
            with suppress(OSError):
                newest = max(newest, file.lstat().st_mtime)
        return newest
    return time.time()
