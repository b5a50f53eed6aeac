"""Worker processes under a time limit and a memory limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
POLL_S = 0.05
SETUP_LIMIT_S = 3600.0
"""For what comes before the measured part: loading libraries and the problem, warming up."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
LAST_LINES = 4


def run_worker(
    task: dict[str, Any], folder: Path, threads: int, time_limit_s: float, memory_limit_gib: float
) -> dict[str, Any]:
    """Do a task in a process of its own.

    Args:
        task: what the worker reads; `result` is added.
        folder: scratch folder of the problem.
        threads: thread count of every library.
        time_limit_s: counted from the moment at which the worker says that its problem is loaded.
        memory_limit_gib: resident memory at which it is killed.

    Returns:
        What the worker wrote, or {"status": "time" | "memory" | "failed", "message": ...}.
    """
    result, started, log = (folder / name for name in ("result.json", "started", "worker.log"))
    for file in (result, started):
        file.unlink(missing_ok=True)
    task_file = folder / "task.json"
    task_file.write_text(json.dumps({**task, "result": str(result), "folder": str(folder)}))
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads))
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.worker", str(task_file)],
            cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            broken = _watch(process, started, time_limit_s, memory_limit_gib)
        finally:
            # Also on Ctrl-C: no worker outlives its runner.
            if process.poll() is None:
                process.kill()
            process.wait()
    if broken:
        return broken
    if process.returncode == 0 and result.is_file():
        return dict(json.loads(result.read_text()))
    if process.returncode == -9:
        # Not a result: somebody else's memory may have been the reason. The next run tries again.
        return {"status": "failed", "message": "killed, most likely because the system was out of memory"}
    last = "\n".join(log.read_text(errors="replace").strip().splitlines()[-LAST_LINES:])
    if "MemoryError" in last or "can't allocate memory" in last:
        return {"status": "memory", "message": last}
    return {"status": "failed", "message": f"exit status {process.returncode}: {last}"}


def _watch(
    process: subprocess.Popen[bytes], started: Path, time_limit_s: float, memory_limit_gib: float
) -> dict[str, Any] | None:
    """Wait for the process to end; returns which limit it broke, if any."""
    handle = psutil.Process(process.pid)
    born = time.monotonic()
    loaded: float | None = None
    while process.poll() is None:
        if loaded is None and started.exists():
            loaded = time.monotonic()
        waited = time.monotonic() - (born if loaded is None else loaded)
        if waited > (SETUP_LIMIT_S if loaded is None else time_limit_s):
            return {"status": "time", "message": f"> {time_limit_s:.0f} s"}
        try:
            resident = handle.memory_info().rss / 2**30
        except psutil.NoSuchProcess:
            break
        if resident > memory_limit_gib:
            return {"status": "memory", "message": f"> {memory_limit_gib:g} GiB"}
        time.sleep(POLL_S)
    process.wait()
    return None
