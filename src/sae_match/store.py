"""One content-addressed store for what jobs share and what a killed job must not lose.

It is a folder of its own inside `paths.cache_dir`:

    sae_match.v1/CACHEDIR.TAG             marks the folder as ours
    sae_match.v1/KIND/HASH.safetensors    an entry of arrays and JSON values
    sae_match.v1/KIND/HASH/entry.json     an entry of large files, which are read where they lie

HASH is the SHA-256 of kind and key. Each entry repeats both in its mark (the header's metadata, or entry.json), with
checksums, so that an entry that was damaged, moved or exchanged is found, and nothing without a mark is taken for ours.
`sae_match.entries` knows their files. Nothing here imports torch.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from sae_match.entries import (
    MARK,
    TAG,
    TAG_TEXT,
    UNREADABLE,
    WRITE_LOCK,
    Key,
    Payload,
    discard,
    entry_hash,
    find_mark,
    is_store,
    plain_payload,
    read_entry,
    temporary_name,
    write_entry,
    write_mark,
)
from sae_match.errors import UserError
from sae_match.files import (
    file_sha256,
    mode_of_new_files,
    nearest_existing_parent,
    set_mode,
    shared_lock,
    write_text,
)

logger = logging.getLogger(__name__)

FOLDER = "sae_match.v1"
RESULTS = ("matchings", "token_losses", "activations", "functional")
INPUTS = ("tokens", "residual_streams", "models", "judge_answers", "scratch")
"""Kinds that are shared even where results are computed anew. A kind that is not among them is a result."""

T = TypeVar("T")


class Store:
    """The entries below one cache directory. Every method that writes raises UserError where that is not possible.

    A folder that a method returns is safe from cleaning as long as this object lives.

    Args:
        directory: the cache directory, as `cache_directory` understands it.
        read: False computes results anew and replaces their entries. `INPUTS`, and what this object has computed
            itself, are read all the same.
        owner: written into entries, so that `forget` knows its own.
    """

    def __init__(self, directory: str | Path = "", read: bool = True, owner: str = "") -> None:
        self.directory = cache_directory(directory)
        self.root = self.directory / FOLDER
        self.read, self.owner = read, owner
        self._computed: set[Path] = set()
        self._in_use: dict[Path, BinaryIO | None] = {}

    def path(self, kind: str, key: Key) -> Path:
        """File of an entry; the folder of an entry of large files has the same name without the suffix."""
        return self.root / kind / f"{entry_hash(kind, key)}.safetensors"

    # -- entries of arrays and JSON values ----------------------------------------------------------------------

    def get_or(
        self,
        kind: str,
        key: Key,
        compute: Callable[[], Mapping[str, Any]],
        decode: Callable[[Payload], T],
        keep: Callable[[Payload], bool] = lambda payload: True,
    ) -> T:
        """What is stored under a key, or what `compute` returns, which is then stored.

        Of several processes that want one entry one computes and the others wait. An entry that is damaged, or that
        `decode` refuses, is reported and computed anew.

        Args:
            key: JSON-compatible; everything that the content depends on.
            compute: returns arrays (NumPy, or tensors) and JSON values by name.
            decode: from these to the result; raises ValueError, KeyError, TypeError or UserError where they are wrong.
            keep: whether to store what was computed.
        """
        found = self._read(kind, key, decode)
        if found is None:
            with self._making(kind, key):
                found = self._read(kind, key, decode)  # another process may have made it while this one waited
                if found is None:
                    payload = plain_payload(compute())
                    if keep(payload):
                        self._write(kind, key, payload)
                    return decode(payload)
        logger.info("%s found in the store (%s)", kind, self.path(kind, key).stem[:12])
        return found[0]

    def get(self, kind: str, key: Key) -> Payload | None:
        """What is stored under a key, or None."""
        found = self._read(kind, key, lambda payload: payload)
        return None if found is None else found[0]

    def put(self, kind: str, key: Key, payload: Mapping[str, Any]) -> None:
        """Store arrays and JSON values by name, in place of what is there.

        Raises:
            TypeError: a value is neither an array of numbers or truth values nor JSON.
            ValueError: a value is not finite.
        """
        self._write(kind, key, plain_payload(payload))

    def forget(self, kind: str) -> None:
        """Remove the entries of a kind that this store's owner has made, now or in an earlier attempt."""
        for path in (self.root / kind).glob("*.safetensors") if self.owner else ():
            mark = find_mark(path)
            if mark is not None and mark.get("owner") == self.owner:
                with suppress(OSError):  # read by a process on a system where that keeps a file
                    path.unlink()

    def _read(self, kind: str, key: Key, decode: Callable[[Payload], T]) -> tuple[T] | None:
        path = self.path(kind, key)
        if not (self.read or kind in INPUTS or path in self._computed):
            return None
        try:
            value = decode(read_entry(path))
        except FileNotFoundError:
            return None
        except UNREADABLE as error:
            logger.warning("stored entry %s is damaged and will be made again: %s", path, error)
            return None
        with suppress(OSError):
            os.utime(path)  # when it was last used
        return (value,)

    def _write(self, kind: str, key: Key, payload: Payload) -> None:
        with self._prepared(kind, key) as path:
            write_entry(path, kind, key, self.owner, payload)
        self._computed.add(path)

    # -- entries of large files ---------------------------------------------------------------------------------

    def folder(self, kind: str, key: Key, fill: Callable[[Path], None], about: Mapping[str, Any] | None = None) -> Path:
        """A folder of files that `fill` writes once, to the empty folder that it is given; readers see all or none.

        Args:
            about: what the entry is, for whoever lists it.
        """
        found = self.find_folder(kind, key)
        if found is not None:
            return found
        with self._making(kind, key), self._prepared(kind, key) as path:
            found = self.find_folder(kind, key)
            if found is not None:
                return found
            target = path.with_suffix("")
            if target.exists():
                logger.warning("stored entry %s is damaged and will be made again", target)
                discard(target)
            scratch = target.with_name(temporary_name(target))
            try:
                scratch.mkdir()
                mode = mode_of_new_files(scratch)
                fill(scratch)
                files = [file for file in scratch.rglob("*") if file.is_file()]
                for file in files:
                    set_mode(file, mode)
                sums = {str(file.relative_to(scratch)): file_sha256(file) for file in files}
                write_mark(scratch, kind, key, about, sums)
                os.rename(scratch, target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        return self._hold(target)

    def find_folder(self, kind: str, key: Key) -> Path | None:
        """The folder of an entry; None where it, or a file of it, is not there."""
        target = self.path(kind, key).with_suffix("")
        mark = find_mark(target)
        if mark is None or not all((target / name).is_file() for name in mark["files"]):
            return None
        return self._hold(target)

    def growing_folder(self, kind: str, key: Key, about: Mapping[str, Any] | None = None) -> Path:
        """A folder to which files are added over time, each under `writing` and then named to `set_sums`."""
        with self._prepared(kind, key) as path:
            target = path.with_suffix("")
            target.mkdir(exist_ok=True)
            self._hold(target)
            if find_mark(target) is None:
                with self.writing(target):
                    if find_mark(target) is None:  # else another process has marked it meanwhile
                        if (target / MARK).exists():
                            logger.warning("%s is damaged and will be made again", target / MARK)
                        write_mark(target, kind, key, about, {})
        return target

    def scratch(self, name: str) -> Path:
        """A growing folder for files of another library, which are neither described nor verified."""
        return self.growing_folder("scratch", {"name": name})

    def writing(self, folder: Path) -> AbstractContextManager[None]:
        """The lock under which a process adds files to a growing folder."""
        return _exclusive_lock(
            folder / WRITE_LOCK, f"another job adds to this entry of {folder.parent.name}", keep=True
        )

    def _hold(self, folder: Path) -> Path:
        if folder not in self._in_use:
            self._in_use[folder] = shared_lock(folder)
        return folder

    # -- writing ------------------------------------------------------------------------------------------------

    def _making(self, kind: str, key: Key) -> AbstractContextManager[None]:
        """The lock under which a process makes an entry."""
        with self._prepared(kind, key) as path:
            lock = path.with_suffix(".lock")
        return _exclusive_lock(lock, f"another job makes this entry of {kind}")

    @contextmanager
    def _prepared(self, kind: str, key: Key) -> Iterator[Path]:
        """`path`, in a folder that exists, in a store that is marked as ours; reports what cannot be written."""
        path = self.path(kind, key)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if not is_store(self.root):
                files = [item for item in self.root.iterdir() if not item.name.startswith(".")]
                if files and not is_store(self.root):  # another process may have marked it before the listing
                    raise UserError(
                        f"{self.root} holds files, but no {TAG} of sae_match, so it is not used. Move it, or choose "
                        "another cache with paths.cache_dir=DIR or SAE_MATCH_CACHE."
                    )
                write_text(self.root / TAG, TAG_TEXT)
            path.parent.mkdir(exist_ok=True)
            yield path
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"cannot write {path}: {error}\nSet paths.cache_dir (or SAE_MATCH_CACHE) to a directory that can be "
                "written and has room."
            ) from error


def cache_directory(configured: str | Path = "") -> Path:
    """The directory that `paths.cache_dir` means: `~` is expanded, a relative path counts from the working directory.

    Empty means SAE_MATCH_CACHE, and where that is empty too, ~/.cache/sae_match. Where this default (no other) cannot
    be written, it is a folder of the user's own in the system's temporary directory, with a warning.

    Raises:
        UserError: `~NAME` names no user, or the temporary folder belongs to somebody else.
    """
    text = str(configured).strip() or os.environ.get("SAE_MATCH_CACHE", "").strip()
    default = Path(os.environ.get("HOME") or ".").absolute() / ".cache" / "sae_match"
    try:
        path = Path(text).expanduser().absolute() if text else default
    except RuntimeError as error:
        raise UserError(f"paths.cache_dir={text}: {error}") from None
    if path != default or os.access(nearest_existing_parent(path), os.W_OK):
        return path
    user = os.getuid() if hasattr(os, "getuid") else "cache"
    fallback = Path(tempfile.gettempdir()) / f"sae_match-{user}"
    fallback.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and fallback.lstat().st_uid != user:
        raise UserError(f"cannot write to {path}, and {fallback} is somebody else's. Set SAE_MATCH_CACHE=DIR.")
    logger.warning("cannot write to %s: what jobs share is kept in %s. SAE_MATCH_CACHE=DIR chooses", path, fallback)
    return fallback


@contextmanager
def _exclusive_lock(path: Path, what: str, keep: bool = False) -> Iterator[None]:
    """Hold a lock file; a process that dies releases it.

    Args:
        what: logged where this process has to wait.
        keep: leave the file; otherwise it is removed, and a process that has waited for it must look again whether
            there is anything left to do.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("%s; waiting for it (%s)", what, path)
        lock.acquire()
    try:
        yield
    finally:
        if not keep:
            with suppress(OSError):
                path.unlink()
        lock.release()
