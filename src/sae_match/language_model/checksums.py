"""Whether a captured layer on disk is still what was captured: its header, its size and its SHA-256."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from sae_match.atomic import write_text


def checksum_path(path: Path) -> Path:
    """File beside a layer's that holds its SHA-256 in hexadecimal."""
    return path.with_suffix(".sha256")


def write_checksum(content: Path, path: Path) -> None:
    """Store the SHA-256 of `content`, which is about to become `path`."""
    write_text(checksum_path(path), _sha256(content))


def damage(path: Path, header: bytes, data_bytes: int) -> str | None:
    """What is wrong with a layer's file, or None. A process reads each file's content once; a file without a
    checksum (captured before there were any) is judged by header and size alone.

    Args:
        header: how the file has to begin; it names model, windows and layer, so that exchanged files are found.
        data_bytes: bytes that follow it.
    """
    try:
        stat = path.stat()
        if stat.st_size != len(header) + data_bytes:
            return f"{stat.st_size} bytes, expected {len(header) + data_bytes}"
        with path.open("rb") as file:
            if file.read(len(header)) != header:
                return "another header"
        stored = checksum_path(path)
        if not stored.is_file():
            return None
        return None if stored.read_text().strip() == _known(path, stat.st_size, stat.st_mtime_ns) else "checksum"
    except (OSError, UnicodeDecodeError) as error:
        return str(error)


@lru_cache(maxsize=1024)
def _known(path: Path, _size: int, _mtime_ns: int) -> str:
    return _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
