"""Matchings that are already known: kept by the content of both SAEs, what was compared and how it was solved.

They are committed one by one, so that a killed job loses the pair in hand at most, and shared by all jobs of a sweep
that differ in something else (the text, the evaluation). A matching brings the figures of the run that found it with
it: its seconds are those of the first time.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from sae_match.config.schema import Config
from sae_match.errors import UserError
from sae_match.keys import tensor_digest
from sae_match.matching import Matching, Permutation
from sae_match.matching.solution import Solver
from sae_match.record.cache import ResultCache
from sae_match.record.provenance import content_key
from sae_match.saes import SparseAutoencoder
from sae_match.saes.folding import FoldingKind

logger = logging.getLogger(__name__)

MATCHING_VERSION = 2
"""To be raised when a solver, or what it minimises, changes its results."""
FOLDER = "matchings"
_NUMBERS = ("objective", "tolerance", "seconds")


def cached_matching(
    cfg: Config,
    a: SparseAutoencoder,
    b: SparseAutoencoder,
    solver: Solver,
    exclude_a: Tensor | None,
    exclude_b: Tensor | None,
    solve: Callable[[], Matching],
) -> Matching:
    """The matching of two SAEs from the cache, or from `solve`, which is then committed.

    Of several processes that want the same matching one solves, the others wait for it. An entry that is damaged, or
    does not fit the SAEs, is reported and solved anew.

    Args:
        solver: the one that `solve` uses; it need not be the configured one (controls are solved otherwise). What
            depends on anything else, such as activations, has no place here.
    """
    directory = Path(cfg.paths.cache_dir) / FOLDER
    cache, key = ResultCache(directory), matching_key(cfg, a, b, solver, exclude_a, exclude_b)
    found = _read(cache, key, a, b, solver.name)
    if found is not None:
        logger.info("matching found in the cache (%s)", key[:12])
        return found
    with alone(directory / f"{key}.lock"):
        found = _read(cache, key, a, b, solver.name)  # another process may have solved it while this one waited
        if found is None:
            found = solve()
            _write(cache, key, found)
    return found


def matching_key(
    cfg: Config,
    a: SparseAutoencoder,
    b: SparseAutoencoder,
    solver: Solver,
    exclude_a: Tensor | None,
    exclude_b: Tensor | None,
) -> str:
    """Content key of a matching: everything that can change the permutation, its cost or its proof."""
    theta = [tensor_digest(sae.theta) for sae in (a, b)] if cfg.folding.name is FoldingKind.theta else None
    return content_key(
        {
            "version": MATCHING_VERSION,
            "saes": [a.content_hash, b.content_hash],
            "folding": cfg.folding.name,
            "theta": theta,
            "excluded": [None if mask is None else tensor_digest(mask) for mask in (exclude_a, exclude_b)],
            "matching": cfg.matching.key(),
            "solver": solver.key(),
            "device": a.device.type,
        }
    )


def _write(cache: ResultCache, key: str, matching: Matching) -> None:
    permutation = matching.permutation
    payload: dict[str, object] = {
        "indices": permutation.indices.numpy(),
        "width_b": permutation.n_b,
        "many_to_one": permutation.many_to_one,
        "lower_bound": matching.lower_bound,
        "gap": matching.gap,
        "provenance": json.dumps(permutation.provenance),
        "statistics": json.dumps(matching.statistics),
    }
    cache.put(key, payload | {name: getattr(matching, name) for name in _NUMBERS})


def _read(cache: ResultCache, key: str, a: SparseAutoencoder, b: SparseAutoencoder, solver: str) -> Matching | None:
    payload = cache.get(key)
    if payload is None:
        return None
    try:
        indices = payload["indices"]
        if not isinstance(indices, np.ndarray) or indices.shape != (a.width,) or payload["width_b"] != b.width:
            raise ValueError(f"it is not for {a.width} and {b.width} features")
        provenance, statistics = (json.loads(str(payload[name])) for name in ("provenance", "statistics"))
        origin = provenance["sae_a"], provenance["sae_b"], provenance["solver"]
        if origin != (a.content_hash, b.content_hash, solver):
            raise ValueError("it is for other SAEs or from another solver")
        permutation = Permutation(torch.from_numpy(indices), b.width, provenance, bool(payload["many_to_one"]))
        return Matching(
            permutation,
            objective=_number(payload["objective"]),
            lower_bound=_optional(payload["lower_bound"]),
            gap=_optional(payload["gap"]),
            tolerance=_number(payload["tolerance"]),
            seconds=_number(payload["seconds"]),
            statistics=statistics,
        )
    except (KeyError, TypeError, ValueError, UserError) as error:
        logger.warning("cached matching %s is damaged and will be solved anew: %s", cache.path(key), error)
        return None


def _number(value: object) -> float:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no finite number")
    return float(value)


def _optional(value: object) -> float | None:
    return None if value is None else _number(value)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock of a matching; a process that dies lets go of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        logger.info("waiting for another process that is solving the same matching")
        lock.acquire()
    try:
        yield
    finally:
        # Whoever still waits for this file finds the finished matching first, so nothing is solved twice without it.
        path.unlink(missing_ok=True)
        lock.release()
