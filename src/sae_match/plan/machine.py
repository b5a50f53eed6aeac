"""What this machine, or a job's allocation on another one, has now, and whether the job fits into it."""

from __future__ import annotations

import math
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from sae_match.errors import UserError
from sae_match.files import GIB, nearest_existing_parent
from sae_match.plan.resources import Phase

MIB = 2**20
SPARE = 1.2
"""Advised memory, in units of the need that is counted."""
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Allocation:
    """What a job gets from Slurm: its own allocation where it runs, or what its launcher would ask for.

    Attributes:
        ram: bytes; None where Slurm or the cluster decides.
        gpus: of the job's one process.
        asked: it is a launcher's request, and this machine is not the job's.
    """

    ram: int | None = None
    gpus: int | None = None
    asked: bool = False

    def device(self, device: str) -> torch.device:
        """The device of a job that asks for these resources.

        Raises:
            UserError: it asks for a GPU, and the allocation has none.
        """
        if device.startswith("cuda") and not self.gpus:
            raise UserError(f"device={device}, but hydra.launcher.gpus_per_node=0: ask for a GPU, or set device=cpu")
        return torch.device("cuda" if device != "cpu" and self.gpus else "cpu")


def current_allocation() -> Allocation | None:
    """The allocation that this process runs in; None outside Slurm."""
    if "SLURM_JOB_ID" not in os.environ:
        return None
    whole, each, cpus = (_number(name) for name in ("MEM_PER_NODE", "MEM_PER_CPU", "CPUS_ON_NODE"))
    ram = whole or (each * cpus if each and cpus else None)
    return Allocation(None if not ram else ram * MIB)


def _number(name: str) -> int | None:
    text = os.environ.get(f"SLURM_{name}", "")
    return int(text) if text.isdigit() else None


@dataclass(frozen=True)
class Machine:
    """Free resources of this machine.

    Attributes:
        ram_free: bytes that a process can still take, a container's limit and Slurm's included.
        ram_used: bytes that this process has taken.
        gpu: name of the accelerator, or None.
        gpu_free: its free bytes.
    """

    ram_free: int
    ram_used: int
    gpu: str | None = None
    gpu_free: int = 0


def probe_machine(device: torch.device, allocation: Allocation | None) -> Machine:
    """The machine as it is now, seen from a job on `device`; where that is another one, no more than its limits."""
    free, used = available_ram(_CGROUP), psutil.Process().memory_info().rss
    if allocation is not None and allocation.ram is not None:
        left = max(0, allocation.ram - used)
        free = left if allocation.asked else min(free, left)
    if device.type == "cuda" and not (allocation is not None and allocation.asked):
        return Machine(free, used, torch.cuda.get_device_name(device), torch.cuda.mem_get_info(device)[0])
    return Machine(free, used)


def cgroups(root: Path, own: Path = Path("/proc/self/cgroup")) -> Iterator[Path]:
    """Folders of this process's control groups (v2), whose limits all hold: its own, and those around it."""
    yield root
    try:
        name = next(line[3:] for line in own.read_text().splitlines() if line.startswith("0::/"))
    except (OSError, StopIteration):
        return
    for part in Path(name).relative_to("/").parts:
        yield (root := root / part)


def available_ram(cgroup: Path) -> int:
    """Bytes that a process can still take: the machine's, or what its control groups (v2) leave."""
    available = int(psutil.virtual_memory().available)
    for group in cgroups(cgroup):
        try:
            limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        except (OSError, ValueError):  # no such group, or "max": no limit
            continue
        try:
            lines = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            used -= int(lines.get("inactive_file", 0)) + int(lines.get("active_file", 0))  # file pages give way
        except (OSError, ValueError):
            pass
        available = min(available, max(0, limit - used))
    return available


def check_memory(steps: list[Phase], machine: Machine, limit_gib: float | None, allocation: Allocation | None) -> None:
    """Refuse a job one of whose steps needs more memory than there is.

    Args:
        limit_gib: main memory that the user allows a solver, where that is more than is available now.

    Raises:
        UserError: naming the step that needs most.
    """
    found = []
    for what, limit, held in (
        ("main memory", max(machine.ram_free, int((limit_gib or 0) * GIB)), {step.name: step.ram for step in steps}),
        (f"memory of {machine.gpu}", machine.gpu_free, {step.name: step.gpu for step in steps}),
    ):
        worst = max(held, key=lambda name: sum(held[name].values()), default="")
        needed = sum(held[worst].values()) if worst else 0
        if needed > limit and (what == "main memory" or machine.gpu is not None):
            first = "Lower"
            if allocation is not None and allocation.ram is not None and what == "main memory":
                ask = math.ceil(SPARE * (needed + machine.ram_used) / GIB)
                first = f"Set hydra.launcher.mem_gb={ask}, or lower"
            parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in held[worst].items())
            found.append(
                f"the step '{worst}' needs {needed / GIB:.1f} GiB of {what} ({parts}), but {limit / GIB:.1f} GiB are "
                f"free. {first} evaluation.batch_windows, use model.dtype=bfloat16 or model.device_map=auto, "
                "evaluation=weights_only, or a machine with more memory."
            )
    if found:
        raise UserError("\n".join(found))


class DiskNeed(NamedTuple):
    """Bytes that a job adds below one directory, None where they are not known; `key` is what chooses the directory."""

    what: str
    path: Path
    bytes: int | None
    key: str


def check_disk(needs: Iterable[DiskNeed]) -> None:
    """Refuse a job that one of the disks has no room for, as far as the needs are known.

    Raises:
        UserError: every file system that is too full, with what would go there.
    """
    by_disk: dict[int, list[DiskNeed]] = defaultdict(list)
    free: dict[int, int] = {}
    for need in needs:
        place = nearest_existing_parent(need.path)
        usage = shutil.disk_usage(place)
        if need.bytes and usage.total:  # pseudo file systems have no size, and are refused as not writable
            by_disk[os.stat(place).st_dev].append(need)
            free[os.stat(place).st_dev] = usage.free
    found = []
    for disk, group in by_disk.items():
        total, room = sum(need.bytes or 0 for need in group), free[disk]
        if total > room:
            parts = ", ".join(f"{need.what} {(need.bytes or 0) / GIB:.1f} in {need.path}" for need in group)
            keys = " or ".join(dict.fromkeys(need.key for need in group))
            found.append(
                f"the disk needs {total / GIB:.1f} GiB ({parts}), but {room / GIB:.1f} GiB are free. Use fewer "
                f"documents or layers, or another disk for {keys}."
            )
    if found:
        raise UserError("\n".join(found))
