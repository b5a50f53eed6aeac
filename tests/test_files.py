"""Files: readable for whom the umask lets read, hashed, locked, and described."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sae_match import UserError
from sae_match.files import (
    GIB,
    check_writable,
    file_sha256,
    format_duration,
    format_size,
    known_sha256,
    shared_lock,
    try_exclusive_lock,
)

SCRIPT = """
import sys
from pathlib import Path
import numpy as np, torch
from sae_match import Permutation
from sae_match.files import write_text
from sae_match.store import Store
root = Path(sys.argv[1])
Store(root).put("matchings", {}, {"x": np.arange(3)})
Store(root).folder("models", {}, lambda folder: (folder / "weights").touch(0o600))
Permutation.identity(3, 3).save(root / "permutation.safetensors")
write_text(root / "text.txt", "text")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_permissions_are_the_umasks(tmp_path: Path, umask: int, mode: int) -> None:
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], check=True, umask=umask)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    modes.pop("in_use.lock")
    assert len(modes) == 6 and set(modes.values()) == {mode}, modes


def test_sums_are_remembered_until_a_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(path) == known_sha256(path) == abc
    path.write_bytes(b"abcd")
    assert known_sha256(path) == file_sha256(path) != abc


def test_a_shared_lock_keeps_the_exclusive_one_away(tmp_path: Path) -> None:
    held = shared_lock(tmp_path)
    assert held is not None and shared_lock(tmp_path) is not None
    with try_exclusive_lock(tmp_path) as free:
        assert not free
    held.close()
    with try_exclusive_lock(tmp_path) as free:
        assert free
    with try_exclusive_lock(tmp_path / "nowhere") as free:
        assert free


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (GIB, "1.0 GiB"), (GIB - 1, "1.0 GiB"), (3 * 2**39, "1.5 TiB")],
)
def test_sizes(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (172800, "2 days")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_place_is_checked_without_a_trace(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b", "paths.x", create=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"cannot write to /proc/absent.*paths\.x=DIR"):
        check_writable(Path("/proc/absent"), "paths.x", create=False)
    check_writable(tmp_path / "a" / "b", "paths.x")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b"]
