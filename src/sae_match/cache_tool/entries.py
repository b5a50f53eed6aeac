"""The entries of the shared cache: what each is, how large, and when it was last used. Nothing here imports torch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = ("activations", "splice_losses", "matchings", "judge_answers")
"""Kinds that are folders of `record.cache.ResultCache`: one safetensors file per entry."""
FOLDERS = ("models", "residual_streams", "tokens", "offload", "wandb")
"""Kinds whose entries are folders."""
HUB = "hub"
"""The hub client's own cache, which other programs share."""
KINDS = (*FOLDERS, *RESULTS, HUB)


@dataclass(frozen=True)
class Entry:
    """One entry.

    Attributes:
        kind: one of `KINDS`.
        path: its file or folder.
        size: bytes, of files only.
        used: seconds since the epoch when any of its files was last read or written, as far as the file system says.
        what: what it is, in words.
    """

    kind: str
    path: Path
    size: int
    used: float
    what: str

    @property
    def name(self) -> str:
        """Kind and key."""
        return f"{self.kind}/{self.path.stem if self.path.suffix == '.safetensors' else self.path.name}"

    def as_dict(self) -> dict[str, Any]:
        """JSON-compatible."""
        return {"kind": self.kind, "name": self.name, "path": str(self.path), "bytes": self.size, "used": self.used,
                "what": self.what}  # fmt: skip


def find_entries(cache: Path, kinds: tuple[str, ...]) -> list[Entry]:
    """The entries of some kinds, those of one kind together, the last used first.

    Temporary files are no entries, and what another process removes meanwhile is left out.
    """
    found: list[Entry] = []
    for kind in kinds:
        entries = _hub_entries() if kind == HUB else _local_entries(cache / kind, kind)
        found += sorted(entries, key=lambda entry: (-entry.used, entry.name))
    return found


def measure(path: Path) -> tuple[int, float]:
    """Bytes below a path, and when one of its files was last read or written."""
    size, used = 0, 0.0
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        try:
            stat = file.lstat()
        except OSError:
            continue
        if not os.path.isdir(file):
            size, used = size + stat.st_size, max(used, stat.st_mtime, stat.st_atime)
        else:
            used = max(used, stat.st_mtime)
    return size, used


def _local_entries(folder: Path, kind: str) -> Iterator[Entry]:
    describe = _DESCRIBE.get(kind, lambda path: "")
    for path in sorted(folder.glob("*.safetensors" if kind in RESULTS else "*")):
        if not path.name.startswith(".") and (kind in RESULTS or path.is_dir()):
            size, used = measure(path)
            with untouched(path):
                what = describe(path)
            if path.exists():
                yield Entry(kind, path, size, used, what)


@contextmanager
def untouched(path: Path) -> Iterator[None]:
    """Looking is not use: what is read in the block keeps its times."""
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    before = {file: times for file in files if (times := _times(file)) is not None}
    try:
        yield
    finally:
        for file, times in before.items():
            # Only where the time of writing is still the same: another process may have used it meanwhile.
            now = _times(file)
            if now is not None and now != times and now[1] == times[1]:
                with suppress(OSError):
                    os.utime(file, ns=times)


def _times(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_atime_ns, stat.st_mtime_ns


def _hub_entries() -> Iterator[Entry]:
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return
    for repository in repositories:
        path, what = Path(repository.repo_path), f"{repository.repo_type} {repository.repo_id}"
        yield Entry(HUB, path, repository.size_on_disk, repository.last_accessed, what)


def _streams(path: Path) -> str:
    manifest = _json(path / "manifest.json")
    layers = sorted(int(file.stem.removeprefix("layer_")) for file in path.glob("layer_[0-9]*.safetensors"))
    size = f"{manifest.get('n_windows', '?')} x {manifest.get('window_tokens', '?')} tokens"
    text = f"{manifest.get('model_name', 'unknown model')}, {size} ({str(manifest.get('windows_key', '?'))[:8]})"
    unfinished = len(list(path.glob("*.partial")))
    return f"{text}, layers {spans(layers)}" + (f", {unfinished} unfinished" if unfinished else "")


def _tokens(path: Path) -> str:
    info = _json(path / "manifest.json").get("info", {})
    source = info.get("recipe", {}).get("source", "unknown text") if isinstance(info, dict) else "unknown text"
    key = str(_json(path / "manifest.json").get("content_key", "?"))[:8]
    return f"{source}, {info.get('documents', '?')} documents, {info.get('windows', '?')} windows ({key})"


def _model(path: Path) -> str:
    names = _json(path / "config.json").get("architectures") or ["unknown architecture"]
    return f"{names[0]}, converted"


_DESCRIBE: dict[str, Callable[[Path], str]] = {
    "models": _model,
    "residual_streams": _streams,
    "tokens": _tokens,
    "activations": lambda path: "activation counts of a pair, of a job that was not finished",
    "splice_losses": lambda path: "token losses of a splice",
    "matchings": lambda path: "a matching",
    "judge_answers": lambda path: "an answer of a judge",
    "offload": lambda path: "weights that were moved to disk",
    "wandb": lambda path: "W&B's own files",
}


def spans(numbers: list[int]) -> str:
    """Ascending integers as `3-5, 8`; `none` where there are none."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts) or "none"


def _json(path: Path) -> dict[str, Any]:
    """What a manifest says; empty where it cannot be read, which `verify` reports."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
