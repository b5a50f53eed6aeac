"""Compiled kernels older than any kernel source are not used."""

from __future__ import annotations

import os
from pathlib import Path

from sae_match.matching.certified.kernel_cache import discard_stale, newest_source


def test_only_stale_kernels_are_discarded(tmp_path: Path) -> None:
    for name, age in [("auction_kernels.auction-1.nbi", 100), ("list_kernels.dot-2.nbi", 300), ("other.nbi", 50)]:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (age, age))
    (tmp_path / "source.py").touch()
    os.utime(tmp_path / "source.py", (200, 200))
    discard_stale(tmp_path, newest_source(tmp_path))
    assert sorted(f.name for f in tmp_path.glob("*.nbi")) == ["list_kernels.dot-2.nbi", "other.nbi"]


def test_a_missing_folder_is_no_error(tmp_path: Path) -> None:
    discard_stale(tmp_path / "nowhere", 0.0)
