"""SHA-256 of every file of a converted model, beside it, in the format of `sha256sum`."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sae_match.atomic import write_text

NAME = "SHA256SUMS"


def write_sums(directory: Path) -> None:
    """Write the sums of all files of a directory."""
    names = sorted(path.name for path in directory.iterdir() if path.is_file() and path.name != NAME)
    write_text(directory / NAME, "\n".join(f"{file_sum(directory / name)}  {name}" for name in names))


def sums_damage(directory: Path) -> str | None:
    """The first file that is missing or not what its sum says, or None; None too where there are no sums."""
    try:
        lines = (directory / NAME).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    for line in lines:
        expected, _, name = line.partition("  ")
        path = directory / name
        if not name or path.parent != directory or not path.is_file():
            return f"{name or line!r} is missing"
        if file_sum(path) != expected:
            return f"{name}: checksum mismatch"
    return None


def file_sum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
