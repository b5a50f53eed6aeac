"""Jobs side by side on one machine, spread over its GPUs."""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_taken: list[FileLock] = []
"""The lock on this process's share of a GPU; a worker process keeps it from job to job."""


def take_gpu(device: str) -> None:
    """Let this process see one GPU only, the one that fewest other processes have taken so, until it ends.

    To be called before CUDA is used. Nothing happens where the device is not `cuda` or `auto`, or there are not several
    GPUs.
    """
    if _taken or device not in ("cuda", "auto"):
        return
    gpus = _visible_gpus()
    if not gpus[1:]:
        return
    user = os.getuid() if hasattr(os, "getuid") else "gpus"
    folder = Path(tempfile.gettempdir()) / f"sae_match-gpus-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for share, gpu in ((share, gpu) for share in itertools.count() for gpu in gpus):
        lock = FileLock(folder / f"{gpu}.{share}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        _taken.append(lock)
        os.environ[_VISIBLE] = gpu
        return


def _visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use."""
    given = os.environ.get(_VISIBLE)
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]  # asks the driver without starting CUDA
