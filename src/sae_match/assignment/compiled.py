"""`njit` for the kernels, and the folder where compiled code is kept.

Numba keeps compiled code beside the source or in the user's cache directory, and refuses to define a function where
neither can be written, as in a container that runs as another user or a module on a cluster. It keeps a kernel as long
as the kernel's own file is unchanged, but compiles kernels of other files into it: after an update that touches one
file only, the others would go on with the old code.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba import njit

from sae_match.errors import UserError
from sae_match.store import Store

__all__ = ["inner", "njit", "prepare_kernels"]

logger = logging.getLogger(__name__)
VARIABLE = "NUMBA_CACHE_DIR"
F = TypeVar("F", bound=Callable[..., Any])


def inner(function: F) -> F:
    """`njit` of a kernel that only kernels call: without what Python would call it by, which takes long to compile."""
    options: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    kernel: F = njit(cache=True, **options)(function)
    return kernel


def choose_kernel_directory() -> None:
    """Where Numba has no folder to write to, give it one in the store, or one of this process.

    Compiled code is run when it is read, so a folder that belongs to another user is not taken.
    """
    try:
        njit(cache=True)(_probe)
        return
    except RuntimeError:  # no folder can be written
        pass
    try:
        store = Store()
        folder = store.scratch(f"kernels of user {os.getuid()}" if hasattr(os, "getuid") else "kernels")
        if hasattr(os, "getuid") and (folder.lstat().st_uid != os.getuid() or not os.access(folder, os.W_OK)):
            raise UserError(f"{folder} is not this user's own")
        folder.chmod(0o700)
        logger.info(
            "the installation cannot be written: compiled kernels are kept in %s (%s=DIR chooses)", folder, VARIABLE
        )
        _stores.append(store)
    except (UserError, OSError) as error:
        folder = Path(tempfile.mkdtemp(prefix="sae_match_kernels_"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        logger.warning(
            "compiled kernels cannot be kept (%s), so each process compiles them, about 20 s. %s=DIR chooses a folder",
            error, VARIABLE,
        )  # fmt: skip
    os.environ[VARIABLE] = str(folder)
    numba.config.reload_config()


def _probe() -> None:
    """Never compiled: Numba looks for a folder when it is defined."""


_stores: list[Store] = []
"""Keeps the folder from being cleaned as long as the process runs."""

choose_kernel_directory()


def prepare_kernels(kernel: Any) -> None:
    """Discard stale kernels and log where a wait for the compiler is to come; cheap after the first call.

    Args:
        kernel: one of the kernels; the others are in the files beside its own.
    """
    if kernel.signatures:  # loaded in this process already
        return
    source = Path(kernel.py_func.__code__.co_filename)
    folder = Path(kernel.stats.cache_path) if kernel.stats.cache_path else None
    if folder is not None:
        discard_stale(folder, max(file.stat().st_mtime for file in source.parent.glob("*.py")))
    if folder is None or not any(folder.glob(f"{source.stem}.{kernel.py_func.__name__}-*.nbi")):
        logger.info("compiling the solver's kernels: once per installation, about 20 s")


def discard_stale(folder: Path, newest: float) -> None:
    """Remove the indexes of kernels compiled before `newest`; without its index a kernel is compiled anew."""
    for index in folder.glob("*.nbi"):
        # Another process may be at it too, or the folder may be read-only: the kernels are then compiled in memory.
        with suppress(OSError):
            if index.stat().st_mtime < newest:
                index.unlink()
