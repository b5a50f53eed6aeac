"""What this machine has now: free memory, free disk, and how fast it multiplies matrices."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from sae_match.files import nearest_existing_parent

_CGROUP = Path("/sys/fs/cgroup")
_BENCHMARK_SECONDS = 0.3


@dataclass(frozen=True)
class Machine:
    """Free resources of this machine.

    Attributes:
        ram_free: bytes that a process can still take, a container's limit included.
        ram_used: bytes that this process has taken.
        gpu: name of the accelerator, or None.
        gpu_free: its free bytes.
        cores: processor cores that this process may use.
    """

    ram_free: int
    ram_used: int
    gpu: str | None
    gpu_free: int
    cores: int


def probe_machine(device: torch.device) -> Machine:
    """The machine as it is now, seen from a job on `device`."""
    gpu, gpu_free = None, 0
    if device.type == "cuda":
        gpu, (gpu_free, _) = torch.cuda.get_device_name(device), torch.cuda.mem_get_info(device)
    return Machine(available_ram(_CGROUP), psutil.Process().memory_info().rss, gpu, gpu_free, torch.get_num_threads())


def available_ram(cgroup: Path) -> int:
    """Bytes that a process can still take: the machine's, or what a container's limit (cgroup v2) leaves."""
    available = int(psutil.virtual_memory().available)
    try:
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return available
    if not (limit.isdigit() and used.isdigit()):  # "max": no limit
        return available
    # File pages count as used, but give way.
    return min(available, max(0, int(limit) - int(used) + _reclaimable(cgroup)))


def _reclaimable(cgroup: Path) -> int:
    try:
        lines = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(lines.get("inactive_file", 0)) + int(lines.get("active_file", 0))


def free_disk(path: Path) -> tuple[int, int | None]:
    """Number of the file system that holds (or would hold) a path, and its free bytes; None of one without a size, as
    pseudo file systems are."""
    place = nearest_existing_parent(path)
    usage = shutil.disk_usage(place)
    return os.stat(place).st_dev, usage.free if usage.total else None


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Measured floating-point operations per second of a matrix product; takes about half a second."""
    n = 4096 if device.type == "cuda" else 768
    a = torch.randn(n, n, device=device).to(dtype)
    b = a.T.contiguous()
    started, rounds = _synchronised(device, a @ b), 0
    while True:
        c = a @ b
        rounds += 1
        elapsed = _synchronised(device, c) - started
        if elapsed > _BENCHMARK_SECONDS:
            return 2.0 * n**3 * rounds / elapsed


def _synchronised(device: torch.device, _result: torch.Tensor) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
