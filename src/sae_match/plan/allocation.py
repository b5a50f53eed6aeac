"""What a job gets from Slurm: its own allocation where it runs, or what its launcher would ask for."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sae_match.errors import UserError
from sae_match.files import GIB, format_duration
from sae_match.plan.resources import Phase

MIB = 2**20
SPARE = 1.2
"""Advised memory, in units of the need that is counted."""


@dataclass(frozen=True)
class Allocation:
    """Limits of a job in Slurm; None where Slurm or the cluster decides.

    Attributes:
        ram: bytes.
        cpus, gpus: of the job's one process.
        minutes: the time limit.
        asked: it is a launcher's request, and this machine is not the job's.
    """

    ram: int | None = None
    cpus: int | None = None
    gpus: int | None = None
    minutes: int | None = None
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
    return Allocation(None if not ram else ram * MIB, _number("CPUS_PER_TASK") or cpus)


def _number(name: str) -> int | None:
    text = os.environ.get(f"SLURM_{name}", "")
    return int(text) if text.isdigit() else None


def cgroups(root: Path, own: Path = Path("/proc/self/cgroup")) -> Iterator[Path]:
    """Folders of this process's control groups (v2), whose limits all hold: its own, and those around it."""
    yield root
    try:
        name = next(line[3:] for line in own.read_text().splitlines() if line.startswith("0::/"))
    except (OSError, StopIteration):
        return
    for part in Path(name).relative_to("/").parts:
        yield (root := root / part)


def advice(
    asked: Allocation, phases: Sequence[Phase], python: int, seconds: float | None, complete: bool
) -> Iterator[str]:
    """Lines on what a launcher asks for, beside what the job needs.

    Args:
        phases: of the job; empty where nothing is known of its size.
        complete: they are all there.
        python: bytes that Python and its libraries hold.
        seconds: time of the steps that can be counted.
    """
    need = python + max((phase.ram_bytes for phase in phases), default=0)
    text = "the cluster's default" if asked.ram is None else f"{asked.ram / GIB:.0f}"
    counted = f"the job needs {need / GIB:.1f} GiB: {enough(need)} would do"
    if not (phases and complete):
        counted = f"the job needs more than {need / GIB:.1f} GiB, how much is not known before its files are here"
    yield f"hydra.launcher.mem_gb: {text}; {counted}"
    yield f"hydra.launcher.cpus_per_task: {asked.cpus or 1}; hydra.launcher.gpus_per_node: {asked.gpus or 0}"
    if asked.minutes is not None:
        known = "" if seconds is None else f"; what can be counted takes about {format_duration(seconds)}"
        short = seconds is not None and seconds > asked.minutes * 60
        more = ": the job would be started again, or set more" if short else ""
        yield f"hydra.launcher.timeout_min: {asked.minutes}{known}{more}"


def enough(need: int) -> int:
    """GiB to ask for where so many bytes are needed."""
    return math.ceil(SPARE * need / GIB)
