"""The entries of a store on disk: their marks and checksums, how they are listed, and how they are removed.

An entry is a safetensors file or a folder named by the hash of its kind and key. Its mark, in the file's header or in
the folder's entry.json, repeats both. What has no mark of ours is never listed as an entry and never removed, and
symbolic links below a store are not followed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sae_match.content import canonical_json, content_key
from sae_match.errors import UserError
from sae_match.files import atomic_path, known_sha256, try_exclusive_lock, write_json

FORMAT = "sae_match.store.v1"
TAG, MARK = "CACHEDIR.TAG", "entry.json"
TAG_TEXT = f"""Signature: 8a477f597d28d172789f06886806bc55
# {FORMAT}: what jobs of sae_match share; `sae-match-cache` lists and cleans it.
# Backup programs that know this tag leave the folder out: https://bford.info/cachedir/
"""
WRITE_LOCK = "write.lock"
"""Lock of a folder to which files are added; it is removed with the folder."""
UNREADABLE = (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError, UserError)
"""What reading a damaged entry raises."""
LEFTOVER_AGE_S = 3600.0
"""A temporary file that has not changed for so long has lost its writer."""
_VALUES = "values.json"
"""The array that holds an entry's JSON values."""
_HASH, _UNIQUE = "[0-9a-f]{64}", "[0-9a-f]{32}"
_ENTRY = re.compile(rf"{_HASH}(\.safetensors)?")
_LEFTOVER = re.compile(rf"\.({_HASH}|CACHEDIR)\.{_UNIQUE}\.tmp(\.\w+)?|\.(writable|mode)\.{_UNIQUE}|{_HASH}\.lock")
"""Names of temporary files and folders, and of the locks of entries that are made once."""

Key = Mapping[str, Any]
Payload = dict[str, Any]
"""Arrays and JSON values by name."""


def is_store(root: Path) -> bool:
    """Whether a folder carries the tag of a store."""
    try:
        return f"# {FORMAT}:" in (root / TAG).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def entry_hash(kind: str, key: Any) -> str:
    """Name of an entry."""
    return content_key({"kind": kind, "key": key})


def read_mark(path: Path) -> dict[str, Any]:
    """The mark of an entry's file or folder: format, kind, key, and checksums; owner (file), about (folder).

    Raises:
        ValueError: there is none of ours, or it is another entry's.
        OSError, SafetensorError: it cannot be read.
    """
    if path.is_dir():
        mark = json.loads((path / MARK).read_text(encoding="utf-8"))
    else:
        with safe_open(path, framework="numpy") as stored:
            mark = stored.metadata() or {}
        mark = mark | {"key": json.loads(mark.get("key", "null"))}
    if not isinstance(mark, dict) or mark.get("format") != FORMAT:
        raise ValueError("it has no mark of this store")
    if entry_hash(mark["kind"], mark["key"]) != path.with_suffix("").name or mark["kind"] != path.parent.name:
        raise ValueError("its mark is another entry's")
    return mark


def find_mark(path: Path) -> dict[str, Any] | None:
    """`read_mark`, or None where it raises."""
    try:
        return read_mark(path)
    except UNREADABLE:
        return None


def read_entry(path: Path) -> Payload:
    """The arrays and values of an entry's file, its checksum checked.

    Raises:
        ValueError, OSError, SafetensorError: it is damaged.
    """
    mark = read_mark(path)
    with safe_open(path, framework="numpy") as stored:
        arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    if mark["checksum"] != _checksum(path.stem, arrays):
        raise ValueError("checksum mismatch")
    return {**json.loads(arrays.pop(_VALUES).tobytes()), **arrays}


def write_entry(path: Path, kind: str, key: Any, owner: str, payload: Payload) -> None:
    """Write arrays and JSON values, as `plain_payload` gives them, with their mark; atomic.

    Raises:
        OSError, SafetensorError: the file cannot be written.
    """
    arrays = {name: value for name, value in payload.items() if isinstance(value, np.ndarray)}
    values = {name: value for name, value in payload.items() if name not in arrays}
    arrays[_VALUES] = np.frombuffer(json.dumps(values, allow_nan=False).encode(), dtype=np.uint8)
    mark = {"format": FORMAT, "kind": kind, "key": canonical_json(key), "owner": owner}
    with atomic_path(path) as temporary:
        save_file(arrays, temporary, metadata={**mark, "checksum": _checksum(path.stem, arrays)})


def plain_payload(payload: Mapping[str, Any]) -> Payload:
    """Arrays as they are stored (C order, little-endian), and values that JSON can hold.

    Raises:
        TypeError, ValueError: as `Store.put`.
    """
    plain: Payload = {}
    for name, given in payload.items():
        # A tensor has `detach`; torch is not imported here.
        value = given.detach().cpu().numpy() if hasattr(given, "detach") else given
        if not isinstance(value, np.ndarray):
            plain[name] = value.item() if isinstance(value, np.generic) else value
            json.dumps(plain[name], allow_nan=False)
        elif value.dtype.kind in "biuf":
            plain[name] = np.array(value, dtype=value.dtype.newbyteorder("<"), order="C")
        else:
            raise TypeError(f"stored value {name}: dtype {value.dtype} cannot be stored")
    return plain


def _checksum(name: str, arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(f"{name}\n".encode())
    for item in sorted(arrays):
        digest.update(f"{item} {arrays[item].dtype.str} {arrays[item].shape}\n".encode())
        digest.update(arrays[item].tobytes())
    return digest.hexdigest()


# -- folders of large files ---------------------------------------------------------------------------------------


def write_mark(folder: Path, kind: str, key: Key, about: Mapping[str, Any] | None, files: Mapping[str, str]) -> None:
    """Mark a folder as an entry; `files` are the SHA-256 of its files by name."""
    plain = json.loads(canonical_json(key))
    write_json(folder / MARK, {"format": FORMAT, "kind": kind, "key": plain, "about": about, "files": dict(files)})


def set_sums(folder: Path, sums: Mapping[str, str | None]) -> None:
    """Write the SHA-256 of some files into a growing folder's mark (None = remove it); under its `writing` lock."""
    mark = read_mark(folder)
    files = {name: value for name, value in {**mark["files"], **sums}.items() if value is not None}
    write_mark(folder, mark["kind"], mark["key"], mark["about"], files)


def find_corruption(folder: Path, names: Iterable[str] | None = None) -> str | None:
    """The first file of a folder (of all, or of those named) that is missing or not what its mark says, or None.

    A file without a checksum in the mark passes. A process reads a file once, unless its size or time changes.
    """
    files: dict[str, str] = read_mark(folder)["files"]
    for name in sorted(files) if names is None else names:
        if not (folder / name).is_file():
            return f"{name} is missing"
        if name in files and known_sha256(folder / name) != files[name]:
            return f"{name}: checksum mismatch"
    return None


def temporary_name(path: Path) -> str:
    """Name beside an entry's, for a folder that is being filled or removed."""
    return f".{path.name}.{uuid.uuid4().hex}.tmp"


def discard(path: Path) -> None:
    """Remove an entry's file or, in one step as far as readers see, its folder."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    going = path.with_name(temporary_name(path))
    os.rename(path, going)
    shutil.rmtree(going)


# -- listing, verifying and removing ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One entry, as it is listed."""

    kind: str
    path: Path
    size: int
    """Bytes of its files."""
    used: float
    """Seconds since the epoch when it was last written or opened."""
    key: Any = field(compare=False)
    about: Any = field(compare=False)
    """What it is, where the key alone would not tell."""

    @property
    def name(self) -> str:
        """Kind and hash."""
        return f"{self.kind}/{self.path.with_suffix('').name}"

    def as_dict(self) -> dict[str, Any]:
        """JSON-compatible."""
        return {"kind": self.kind, "name": self.name, "path": str(self.path), "bytes": self.size, "used": self.used,
                "key": self.key, "about": self.about}  # fmt: skip


def list_entries(root: Path, kinds: Iterable[str] | None = None) -> tuple[list[Entry], dict[Path, str]]:
    """The entries of some kinds (None = all), the last used first, and why other files that have an entry's name are
    none. What another process removes meanwhile is left out.
    """
    found: list[Entry] = []
    unreadable: dict[Path, str] = {}
    for folder in _kind_folders(root):
        if kinds is not None and folder.name not in kinds:
            continue
        for path in _children(folder):
            if not _ENTRY.fullmatch(path.name) or path.is_dir() == (path.suffix != ""):
                continue
            try:
                mark = read_mark(path)
                found.append(Entry(folder.name, path, *_measure(path), mark["key"], mark.get("about")))
            except UNREADABLE as error:
                if path.exists():
                    unreadable[path] = str(error)
    return sorted(found, key=lambda entry: (entry.kind, -entry.used, entry.name)), unreadable


def verify_entry(entry: Entry) -> str | None:
    """What is wrong with an entry's content, or None."""
    try:
        if entry.path.is_dir():
            return find_corruption(entry.path)
        read_entry(entry.path)
    except UNREADABLE as error:
        return str(error) if entry.path.exists() else None
    return None


def remove_entry(entry: Entry) -> str | None:
    """Remove an entry that no process reads or writes; why it stayed, or None."""
    folder = entry.path.is_dir()
    lock = entry.path / WRITE_LOCK if folder else entry.path.with_suffix(".lock")
    try:
        with ExitStack() as stack:
            if lock.exists():  # one that nobody made is not made here: it would be left over
                stack.enter_context(FileLock(lock, timeout=0))
            if folder and not stack.enter_context(try_exclusive_lock(entry.path)):
                return "in use"
            discard(entry.path)
    except Timeout:
        return "in use"
    except FileNotFoundError:
        return None  # another process was faster
    except OSError as error:
        return error.strerror or str(error)
    return None


def find_leftovers(root: Path, now: float) -> dict[Path, int]:
    """Temporary files and folders of processes that are gone, and their bytes."""
    places = [root, *_kind_folders(root)]
    named = {path: _measure(path) for place in places for path in _children(place) if _LEFTOVER.fullmatch(path.name)}
    return {path: size for path, (size, used) in named.items() if now - used > LEFTOVER_AGE_S}


def remove_leftover(path: Path) -> None:
    """Remove what `find_leftovers` found; a lock that a process holds stays."""
    with suppress(Timeout, FileNotFoundError):
        if path.suffix == ".lock":
            with FileLock(path, timeout=0):
                path.unlink()
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _measure(path: Path) -> tuple[int, float]:
    """Bytes below a path, and when one of its files was last written or opened; links are not followed."""
    size, used = 0, 0.0
    for place, _, names in os.walk(path) if path.is_dir() else [(str(path.parent), [], [path.name])]:
        for name in names:
            with suppress(OSError):
                found = os.lstat(os.path.join(place, name))
                size, used = size + found.st_size, max(used, found.st_mtime)
    return size, used or time.time()


def _kind_folders(root: Path) -> list[Path]:
    if not is_store(root):
        return []
    return [path for path in _children(root) if path.is_dir() and re.fullmatch("[a-z_]+", path.name)]


def _children(folder: Path) -> list[Path]:
    """What lies in a folder, without symbolic links, by name."""
    try:
        return sorted(path for path in folder.iterdir() if not path.is_symlink())
    except OSError:
        return []
