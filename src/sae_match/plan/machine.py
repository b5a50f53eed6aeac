"""What this machine has now, whether a job fits into it, and how long the job takes on it."""

from __future__ import annotations

import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from sae_match.errors import UserError
from sae_match.files import GIB, nearest_existing_parent
from sae_match.plan.allocation import Allocation, cgroups, enough
from sae_match.plan.resources import (
    JobShape,
    Phase,
    activation_flops,
    capture_flops,
    functional_flops,
    sae_bytes,
    splice_flops,
    steering_flops,
)

SAE_READS_WEIGHTS, SAE_READS_FULL = 2, 4
"""How often each SAE is read: checked, matched; then for activations, and for delta loss."""
EFFICIENCY = {"cpu": 0.8, "cuda": 0.4}
"""Share of a plain matrix product's rate that whole steps reach."""
DOWNLOAD_RATE = 25e6
"""Bytes per second, assumed."""
READ_RATE = 400e6
"""Bytes per second of reading, checking and hashing an SAE, as seen on one core."""
_CGROUP = Path("/sys/fs/cgroup")
_BENCHMARK_SECONDS = 0.3


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
                first = f"Set hydra.launcher.mem_gb={enough(needed + machine.ram_used)}, or lower"
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


class Duration(NamedTuple):
    """One step's time, with the numbers behind it; None where nothing is known about it."""

    step: str
    seconds: float | None
    because: str


def durations(
    shape: JobShape | None, downloads: int | None, device: torch.device, dtype: str, layers: list[int]
) -> Iterator[Duration]:
    """Time of the steps whose work can be counted, at a rate measured on this machine in about a second.

    Good enough to distinguish minutes from days. An assignment takes as long as its costs make it; it is not predicted.

    Args:
        downloads: bytes.
        dtype: the model's.
    """
    if downloads is None:
        yield Duration("download", None, "sizes not known")
    else:
        because = f"{downloads / 1e9:.2f} GB at {DOWNLOAD_RATE / 1e6:.0f} MB/s"
        yield Duration("download", downloads / DOWNLOAD_RATE, because)
    if shape is None:
        return
    model, text = shape.model, shape.text
    reads = SAE_READS_WEIGHTS if model is None else SAE_READS_FULL
    read = reads * sum(sae_bytes(shape.d_model, width) for width in shape.widths)
    read += sum(sae_bytes(shape.d_model, b) for _, b in shape.far_pairs)
    because = f"{read / 1e9:.1f} GB, {reads} times each, at {READ_RATE / 1e6:.0f} MB/s"
    yield Duration("read SAEs", read / READ_RATE, because)
    yield Duration("match all pairs", None, "depends on the SAEs")
    if model is None or text is None:
        return
    if text.windows is None or text.splice_windows is None:
        yield Duration("capture, activations and splices", None, "number of windows not known")
        return
    rates = {kind: matmul_flops(device, getattr(torch, kind)) * EFFICIENCY[device.type] for kind in {"float32", dtype}}
    windows = text.windows + text.fit_windows
    for step, flops, kind in (
        ("capture residual streams", capture_flops(model, windows, text.tokens, layers[-1]), dtype),
        ("activations of all pairs", activation_flops(shape, text, text.windows), "float32"),
        ("splice and resume", splice_flops(model, shape, text.splice_windows, text.tokens, layers), dtype),
        ("functional tests", functional_flops(model, shape, text, text.windows), dtype),
        ("interventions along flows", steering_flops(model, shape, text.tokens, layers), dtype),
    ):
        if flops == 0:
            continue
        because = f"{flops / 1e12:.3g} TFLOP at {rates[kind] / 1e9:.3g} GFLOP/s ({kind} products measured here)"
        yield Duration(step, flops / rates[kind], because)


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Measured floating-point operations per second of a matrix product; takes about half a second."""

    def finished() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    n = 4096 if device.type == "cuda" else 768
    a = torch.randn(n, n, device=device).to(dtype)
    b = a.T.contiguous()
    _ = a @ b  # the first product also pays for setting up
    started, rounds, elapsed = finished(), 0, 0.0
    while elapsed <= _BENCHMARK_SECONDS:
        _ = a @ b
        rounds += 1
        elapsed = finished() - started
    return 2.0 * n**3 * rounds / elapsed
