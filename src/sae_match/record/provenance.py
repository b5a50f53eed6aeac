"""What produced a result: library versions, the code's commit, content hashes."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from enum import Enum
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

RECORDED_LIBRARIES = (
    "sae-match",
    "torch",
    "transformers",
    "datasets",
    "numpy",
    "scipy",
    "numba",
    "POT",
    "pandas",
    "safetensors",
    "hydra-core",
    "omegaconf",
    "wandb",
    "lightning",
    "pytorch-lightning",
)
"""Distributions whose version can change a number; absent ones are recorded as null."""

PACKAGE = Path(__file__).resolve().parents[1]
"""The folder of the package that runs."""

_CHUNK_BYTES = 1 << 20


class GitState(NamedTuple):
    """Commit of the checkout that the package runs from; both fields are None outside a checkout."""

    sha: str | None
    dirty: bool | None


def versions() -> dict[str, str | None]:
    """Python's and the recorded libraries' versions."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in RECORDED_LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


@cache
def git_state(package: Path = PACKAGE) -> GitState:
    """Commit of the checkout that holds `package`, and whether the package differs from it.

    A package installed into a virtual environment that happens to lie inside somebody else's
    repository is not under that repository's version control: only a tracked file counts.
    """
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return GitState(None, None)
    sha = _git(package, "rev-parse", "--verify", "HEAD")
    changes = _git(package, "status", "--porcelain", "--", ".")
    if sha is None or changes is None:
        return GitState(None, None)
    return GitState(sha, bool(changes))


def _git(folder: Path, *arguments: str) -> str | None:
    """Standard output of a git command, or None where git is missing, slow or says no."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def content_key(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, as 64 hexadecimal digits: the key of a cached result.

    Mappings hash alike in any order, tuples like lists, enums like their value, NumPy scalars like
    Python's. 1 and 1.0 differ. Paths are refused: a result is named by content, never by a file's name.

    Raises:
        TypeError: a value has no canonical form (a path, an array, an object) or a key is no string.
        ValueError: a float is not finite.
    """
    text = json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _canonical(value: Any) -> Any:
    if isinstance(value, Enum):
        return _canonical(value.value)
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"content_key: mapping keys must be strings, not {key!r}")
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    raise TypeError(f"content_key: {type(value).__name__} has no canonical form; hash its content instead")
