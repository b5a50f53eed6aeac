"""`njit` for the kernels, with a folder for compiled code that can be written.

Numba keeps compiled code beside the source or in the user's cache directory, and refuses to define a function where
neither can be written, as in a container that runs as another user or a module on a cluster.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from pathlib import Path

import numba
from numba import njit

from sae_match.errors import UserError
from sae_match.store import Store

__all__ = ["njit"]

logger = logging.getLogger(__name__)
VARIABLE = "NUMBA_CACHE_DIR"


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
    """Never compiled: defining it tells whether Numba finds a folder."""


_stores: list[Store] = []
"""Keeps the folder from being cleaned as long as the process runs."""

choose_kernel_directory()
