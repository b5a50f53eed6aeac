"""Refusing, before anything is allocated, a problem that does not fit into memory."""

from __future__ import annotations

import psutil

from sae_match.errors import UserError
from sae_match.files import GIB


def problem_bytes(n_a: int, n_b: int, d: int) -> int:
    """The rows of a problem, with the SAEs and their folded copies behind them."""
    return 3 * 4 * (n_a + n_b) * d


def refuse_above(limit_gib: float | None, needed: float, solver: str, shape: tuple[int, int], advice: str) -> None:
    """Refuse a problem that needs more bytes than the limit.

    Args:
        limit_gib: the limit; None = what the machine has available now.
        needed: bytes.
        advice: what to do about it, after "Use ".

    Raises:
        UserError: it needs more.
    """
    limit = psutil.virtual_memory().available / GIB if limit_gib is None else limit_gib
    if needed / GIB > limit:
        raise UserError(
            f"solver={solver} needs {needed / GIB:.1f} GiB for {shape[0]} x {shape[1]} features, but only {limit:.1f} "
            f"GiB are available. Use {advice} (or raise solver.memory_limit_gib)."
        )
