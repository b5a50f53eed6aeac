"""Compiled kernels: where they are kept, and that stale ones are not used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sae_match.assignment.compiled import discard_stale
from sae_match.store import FOLDER

SCRIPT = """
import os
from sae_match.assignment.list_kernels import dot
print(os.path.dirname(dot.stats.cache_path))
"""


@pytest.mark.parametrize("writable", [True, False])
def test_a_read_only_installation_and_home(tmp_path: Path, writable: bool) -> None:
    cache = tmp_path / "cache" if writable else Path("/proc/absent")
    # Numba then looks at NUMBA_CACHE_DIR only, as if nothing else could be written.
    variables = {"NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator", "SAE_MATCH_CACHE": str(cache)}
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    environment |= variables | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    place = Path(done.stdout.strip())
    if writable:
        assert place.parent == cache / FOLDER / "scratch" and done.stderr == ""
        assert place.stat().st_mode & 0o777 == 0o700
    else:
        assert place.parent == tmp_path and not place.exists(), "it goes with the process"
        assert "compiled kernels cannot be kept" in done.stderr and "NUMBA_CACHE_DIR=DIR" in done.stderr


def test_only_stale_kernels_are_discarded(tmp_path: Path) -> None:
    for name, age in [("auction_kernels.auction-1.nbi", 100), ("list_kernels.dot-2.nbi", 300), ("other.nbi", 250)]:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (age, age))
    discard_stale(tmp_path, 200)
    assert sorted(f.name for f in tmp_path.glob("*.nbi")) == ["list_kernels.dot-2.nbi", "other.nbi"]


def test_a_missing_folder_is_no_error(tmp_path: Path) -> None:
    discard_stale(tmp_path / "nowhere", 0.0)
