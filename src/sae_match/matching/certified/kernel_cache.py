"""The compiled kernels on disk: discarded when any kernel's source is newer, announced when they must be compiled.

Numba keeps a kernel as long as its own file is unchanged, but compiles the kernels of other files into it. After an
update that touches one file only, the others would go on with the old code.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from sae_match.matching.certified.auction_kernels import auction

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent


def prepare_kernels() -> None:
    """Discard stale kernels and say so where a wait for the compiler is to come; cheap after the first call."""
    if auction.signatures:  # loaded in this process already
        return
    folder = Path(auction.stats.cache_path) if auction.stats.cache_path else None
    if folder is not None:
        discard_stale(folder, newest_source(SOURCES))
    if folder is None or not any(folder.glob("auction_kernels.auction-*.nbi")):
        logger.info("compiling the solver's kernels: once per installation, about 20 s")


def newest_source(sources: Path) -> float:
    """Modification time of the kernel file that changed last."""
    return max(file.stat().st_mtime for file in sources.glob("*.py"))


def discard_stale(folder: Path, newest: float) -> None:
    """Remove the indexes of kernels compiled before `newest`; without its index a kernel is compiled anew."""
    for index in folder.glob("*_kernels.*.nbi"):
        # Another process may be at it too, or the folder may be read-only: the kernels are then compiled in memory.
        with suppress(OSError):
            if index.stat().st_mtime < newest:
                index.unlink()
