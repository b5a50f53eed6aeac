"""Writing files so that a reader, or a killed job, never meets half of one."""

from __future__ import annotations

import json
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sae_match.errors import UserError


def set_mode(file: Path, mode: int) -> None:
    """Give a file the permissions of another that was simply created.

    safetensors writes for the owner only, whoever asked: colleagues who share a cache, or read a record, could not.
    Where permissions cannot be set (some mounted file systems), they stay as they are.
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

    The temporary file lies in the same folder (a rename across file systems is a copy) and keeps the
    suffix, because several writers choose their format by it. Missing parent folders are created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp{path.suffix}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        temporary.unlink()  # what is not written must be missed
        yield temporary
        set_mode(temporary, mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(directory: Path, key: str) -> None:
    """Create `directory` and prove that it can be written to.

    Args:
        key: the configuration key that names it, for the message.

    Raises:
        UserError: it cannot.
    """
    probe = directory / f".writable.{uuid.uuid4().hex}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to {directory} ({error.strerror or error}). Choose another directory with {key}=DIR."
        ) from error


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
