"""What produced a result: library versions and the code's commit."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

RECORDED_LIBRARIES = (
    *("sae-match", "torch", "transformers", "datasets", "numpy", "scipy", "numba", "POT", "pandas", "safetensors"),
    *("hydra-core", "omegaconf", "wandb", "lightning", "pytorch-lightning"),
)
"""Distributions whose version can change a number; absent ones are recorded as null."""
PACKAGE = Path(__file__).resolve().parents[1]
"""The folder of the package that runs."""


class GitState(NamedTuple):
    """Commit of the checkout that the package runs from; both fields are None outside a checkout."""

    sha: str | None
    dirty: bool | None


def versions() -> dict[str, str | None]:
    """Python's and the recorded libraries' versions."""
    return {"python": platform.python_version()} | {name: _version(name) for name in RECORDED_LIBRARIES}


@cache
def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@cache
def git_state(package: Path = PACKAGE) -> GitState:
    """Commit of the checkout that holds `package`, and whether the package differs from it.

    A package installed into a virtual environment that happens to lie inside somebody else's repository is not under
    that repository's version control: only a tracked file counts.
    """
    tracked = _git(package, "ls-files", "--error-unmatch", "__init__.py")
    sha, changes = _git(package, "rev-parse", "--verify", "HEAD"), _git(package, "status", "--porcelain", "--", ".")
    if tracked is None or sha is None or changes is None:
        return GitState(None, None)
    return GitState(sha, bool(changes))


def _git(folder: Path, *arguments: str) -> str | None:
    """Standard output of a git command, or None where git is missing, slow or fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
