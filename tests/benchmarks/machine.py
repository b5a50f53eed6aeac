"""What a measurement depends on besides the code: processor, memory, versions, load."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

PACKAGES = ("sae-match", "numpy", "scipy", "torch", "numba", "lapx", "fastlap", "laprust", "ortools", "POT")


def cpu_model() -> str:
    """Name of the processor."""
    file = Path("/proc/cpuinfo")
    if file.is_file():
        for line in file.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def package_version(name: str) -> str | None:
    """Installed version, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def describe(device: str) -> dict[str, Any]:
    """The machine and the libraries, as they are written into every record."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        "python": platform.python_version(),
        "versions": {name: package_version(name) for name in PACKAGES},
    }


def load_average() -> float:
    """Runnable processes, mean over the last minute."""
    return round(os.getloadavg()[0], 2)
