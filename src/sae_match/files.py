"""Files: written whole or not at all, hashed, locked, and their sizes shown to people."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, BinaryIO

from safetensors import SafetensorError

from sae_match.errors import DamagedFileError, UserError

GIB = 2**30
LOCK_FILE = "in_use.lock"
"""File of a folder that its readers lock; its time of modification is when the folder was last opened."""


def set_mode(file: Path, mode: int) -> None:
    """Give a file the permissions of another that was simply created: safetensors writes for the owner only, and
    colleagues share a cache or read a record. Where permissions cannot be set (some mounts), they stay as they are.
    """
    if file.stat().st_mode != mode:
        with suppress(OSError):
            os.chmod(file, stat.S_IMODE(mode))


def mode_of_new_files(directory: Path) -> int:
    """`st_mode` of a file that is simply created there, as umask and directory decide."""
    probe = directory / f".mode.{uuid.uuid4().hex}"
    probe.touch()
    try:
        return probe.stat().st_mode
    finally:
        probe.unlink()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on failure it is removed.

    The temporary file lies in the same folder (a rename across file systems is a copy) and keeps the suffix, because
    several writers choose their format by it. Missing parent folders are created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = mode_of_new_files(path.parent)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp{path.suffix}")
    try:
        yield temporary
        set_mode(temporary, mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(directory: Path, key: str, *, create: bool = True) -> None:
    """Check that files can be written to `directory`.

    Args:
        key: the configuration key that names it, for the message.
        create: create the directory and a file in it; otherwise look at permissions only and leave no trace.

    Raises:
        UserError: they cannot.
    """
    place = nearest_existing_parent(directory)
    problem = None
    try:
        if create:
            directory.mkdir(parents=True, exist_ok=True)
            mode_of_new_files(directory)
        # Pseudo file systems such as /proc have no size.
        elif not place.is_dir() or not os.access(place, os.W_OK) or shutil.disk_usage(place).total == 0:
            problem = f"{place} is not writable"
    except OSError as error:
        problem = error.strerror or str(error)
    if problem is not None:
        raise UserError(f"cannot write to {directory}: {problem}. Choose another directory with {key}=DIR.")


def nearest_existing_parent(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = Path(path).expanduser().absolute()
    while not path.exists():
        path = path.parent
    return path


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 with Unix line ends, ending in a newline, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as sorted, indented JSON, atomically.

    Raises:
        ValueError: a float is not finite (JSON has no NaN).
        TypeError: a value is not a JSON type.
    """
    write_text(path, json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False))


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Reads a file of data; what is wrong with its content is an error that names it.

    Args:
        what: the file should be, without article.

    Raises:
        DamagedFileError: it is missing, larger than 1 GiB (JSON: 4 MiB), damaged, or without what is looked up in it.
    """
    try:
        if path.stat().st_size > (most := 4 * 2**20 if path.suffix == ".json" else GIB):
            raise ValueError(f"larger than {most} bytes")
        yield
    except (AttributeError, LookupError, OSError, SafetensorError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DamagedFileError(path, f"not a readable {what} ({type(error).__name__}: {reason})") from error


def read_json_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_sha256(path: Path) -> str:
    """`file_sha256`, computed once per process for a path, size and time of modification."""
    found = path.stat()
    return _known_sha256(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=4096)
def _known_sha256(path: Path, _size: int, _mtime_ns: int) -> str:
    return file_sha256(path)


def shared_lock(directory: Path) -> BinaryIO | None:
    """Lock a folder against removal until the returned file is closed; the lock ends with the process at the latest.

    Returns:
        None where no lock file can be opened or the system has no such locks; then only age protects the folder.
    """
    file = _open_lock(directory)
    if file is not None:
        with suppress(OSError):
            os.utime(file.fileno())
        try_lock(file, shared=True)
    return file


@contextmanager
def try_exclusive_lock(directory: Path) -> Iterator[bool]:
    """Whether no process has a `shared_lock` on the folder; while the block runs none can get one."""
    file = _open_lock(directory)
    if file is None:
        yield True
        return
    with file:
        yield try_lock(file, shared=False) is not False


def _open_lock(directory: Path) -> BinaryIO | None:
    for mode in ("ab", "rb"):  # a colleague's folder may be readable only, and a lock needs no more
        with suppress(OSError):
            return (directory / LOCK_FILE).open(mode)
    return None


def try_lock(file: IO[Any], *, shared: bool) -> bool | None:
    """Lock an open file if no other process has a lock in the way; None where the file system has no locks."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def format_size(size: float) -> str:
    """Bytes for people, such as `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1023.95:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def format_duration(seconds: float) -> str:
    """Seconds for people, such as `12 min`."""
    for unit, length, limit in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        if seconds < limit * length:
            return f"{seconds / length:.1f} h" if unit == "h" else f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def config_directory() -> Path:
    """The folder of YAML groups: inside the installed package, or `conf/` of a source checkout.

    Raises:
        UserError: neither exists, which means a broken installation.
    """
    package = Path(__file__).resolve().parent
    for candidate in (package / "conf", package.parents[1] / "conf"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise UserError(f"the configuration folder is missing beside {package}; reinstall sae_match")
