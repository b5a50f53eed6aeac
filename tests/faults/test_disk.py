"""Disks that are full, that cannot be written to, and clocks that run backwards."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

import sae_match.record.job as job_module
from sae_match import UserError
from sae_match.experiment import run
from sae_match.files import atomic_path, write_json
from sae_match.plan.plan import Plan
from sae_match.record.state import read_status
from sae_match.store import Store
from sae_match.study import Study
from tests.builders import scientific
from tests.command import run_command
from tests.faults.kill_loop import scientific_results

pytestmark = pytest.mark.slow

Configured = Callable[..., Study]
KEY = {"what": "losses"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 32 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount(folder, "-t", "tmpfs", "-o", "size=32m", "tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def mount(folder: Path, *arguments: str) -> None:
    """Mount, or skip the test where that is not allowed."""
    try:
        done = subprocess.run(["mount", *arguments, str(folder)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if done.returncode != 0:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")


def fill(disk: Path, leave: int) -> None:
    """Fill the disk but for so many bytes."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "ballast").write_bytes(bytes(max(0, free - leave)))


def debris(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if ".tmp" in path.name or path.name.startswith(".writable"))


def test_a_full_disk_leaves_the_old_file_whole(small_disk: Path) -> None:
    write_json(small_disk / "a.json", {"old": 1})
    store = Store(small_disk)
    store.put("token_losses", KEY, {"losses": np.arange(8.0)})
    before = {path: path.read_bytes() for path in small_disk.rglob("*") if path.is_file()}
    fill(small_disk, 16 << 10)
    with pytest.raises(OSError, match="No space left"):
        write_json(small_disk / "a.json", {"new": "x" * 100_000})
    with pytest.raises(Exception, match="No space left"):
        store.put("token_losses", KEY, {"losses": np.zeros(100_000)})
    with pytest.raises(OSError, match="No space left"), atomic_path(small_disk / "b.bin") as temporary:
        temporary.write_bytes(bytes(100_000))
    assert {path: path.read_bytes() for path in before} == before
    assert debris(small_disk) == [] and not (small_disk / "b.bin").exists()
    assert store.get("token_losses", KEY) is not None


@pytest.mark.parametrize("leave", [0, 12 << 10, 48 << 10])
def test_a_disk_that_fills_while_a_job_runs(
    small_disk: Path, configured: Configured, random_saes: Path, monkeypatch: pytest.MonkeyPatch, leave: int
) -> None:
    """The job fails by name wherever it is; no half file is left, and with room it goes on to the same results."""
    output = small_disk / "out"
    options = ("evaluation=weights_only", "layers.last=2")
    fill(small_disk, leave)
    cfg = configured(random_saes, *options, f"paths.output_dir={output}", f"paths.cache_dir={small_disk / 'cache'}")
    with pytest.raises((UserError, OSError), match=r"the disk needs|cannot write|No space left"):
        run(cfg)  # the plan sees it coming, where its record can be begun at all
    with monkeypatch.context() as patch:
        patch.setattr(Plan, "require", lambda plan: None)
        with pytest.raises(Exception, match=r"No space left|os error 28|cannot write"):
            run(cfg)
    assert debris(small_disk) == []
    (small_disk / "ballast").unlink()
    result = run(cfg)
    assert read_status(output).state == "done"  # type: ignore[union-attr]
    undisturbed = run(configured(random_saes, *options, output="undisturbed"))
    assert scientific(result.metrics) == scientific(undisturbed.metrics)


@pytest.mark.parametrize("which", ["output", "cache"])
def test_a_folder_that_cannot_be_written_to(
    tmp_path: Path, configured: Configured, random_saes: Path, which: str
) -> None:
    folder = tmp_path / "read_only"
    folder.mkdir()
    mount(folder, "-t", "tmpfs", "-o", "size=1m,ro", "tmpfs")
    try:
        key = {"output": "paths.output_dir", "cache": "paths.cache_dir"}[which]
        cfg = configured(random_saes, "evaluation=weights_only", "layers.last=1", f"{key}={folder / 'x'}")
        with pytest.raises(UserError, match=f"cannot write to .*Choose another .*{key}=DIR"):
            run(cfg)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_the_command_says_so_too(tmp_path: Path) -> None:
    folder = tmp_path / "read_only"
    folder.mkdir()
    mount(folder, "-t", "tmpfs", "-o", "size=1m,ro", "tmpfs")
    try:
        done = run_command("evaluation=weights_only", f"hydra.run.dir={folder / 'x'}", cwd=tmp_path)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
    assert done.code == 2
    assert "Read-only file system" in done.err and "Traceback" not in done.err


def test_a_clock_that_runs_backwards(
    tmp_path: Path, configured: Configured, random_saes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wall clock loses an hour at every look; durations and results do not notice."""
    options = ("evaluation=weights_only", "layers.last=2")
    plain = run(configured(random_saes, *options, f"paths.cache_dir={tmp_path / 'other'}", output="plain"))
    looks = [0]

    def earlier() -> float:
        looks[0] += 1
        return real() - 3600.0 * looks[0]

    class Backwards(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            looks[0] += 1
            return datetime.now(tz) - timedelta(hours=looks[0])  # type: ignore[arg-type]

    real = time.time
    monkeypatch.setattr(time, "time", earlier)
    monkeypatch.setattr(job_module, "datetime", Backwards)
    result = run(configured(random_saes, *options))
    status = read_status(result.directory)
    assert status is not None and status.state == "done"
    assert status.seconds is not None and 0 <= status.seconds < 600
    assert looks[0] >= 2
    assert scientific_results(result.directory) == scientific_results(plain.directory)
