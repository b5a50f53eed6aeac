"""The certified solver: exact one-to-one matching with a proof, in a quarter of the dense matrix's memory or less."""

from __future__ import annotations

import logging
import sys
import time
from functools import partial
from typing import Annotated, ClassVar, Self

import psutil
import torch
from pydantic import Field

from sae_match.assignment.points import Limits, solve_points
from sae_match.assignment.workspace import lists_bytes, most_slots
from sae_match.files import GIB
from sae_match.matching.permutation import Permutation
from sae_match.matching.problem import MatchingProblem, SimilarityProblem, describe_outliers
from sae_match.matching.products import Precision, check_precision, make_product
from sae_match.matching.solution import Solution, Solver, problem_bytes
from sae_match.options import option

logger = logging.getLogger(__name__)

_WARM: set[type] = set()
"""Kinds of problems that this process has solved one of."""


@option
class CertifiedSolver(Solver):
    """Exact solver by a lazy shortest-augmenting-path method with an auction start.

    `memory_limit_gib` decides whether inner products are kept: where they do not fit, rows are computed anew whenever
    they are needed.
    """

    name: str = "certified"
    time_limit_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Stop each pair after this many seconds with a complete permutation and the gap reached; null = never."""
    verify: bool = True
    """Prove dual feasibility over all pairs of features in a pass of its own. Without it the bound rests on lists."""
    cache: bool | None = None
    """Keep all inner products (2 bytes each); null = where they fit into memory."""
    product: Precision = Precision.auto
    """Precision of the factors of inner products: float32, bfloat16, float16 (GPU), or auto = the fastest here. The
    answer is the same: pairs that the product leaves undecided are priced exactly."""
    block_rows: Annotated[int, Field(ge=1)] = 1024
    """Rows of the cost matrix computed at a time; changes memory use, not the result."""
    device: str = "cpu"
    """Where inner products are computed; set by the job."""
    progress: bool = False
    """Progress bars; set by the job."""

    limits_pairs: ClassVar[bool] = True
    advice: ClassVar[str] = (
        "narrower SAEs, matching=decoder, a smaller solver.block_rows, or a machine with more memory"
    )

    def on(self, device: str, progress: bool = False) -> Self:
        """The solver with its products computed on a device.

        Raises:
            UserError: the device has no products of the precision that was asked for.
        """
        check_precision(self.product, device)
        return super().on(device, progress)

    def required_bytes(self, n_a: int, n_b: int, d: int) -> int:
        """The least peak memory of a match: with the inner products kept or not, where that is not decided."""
        choices = [True, False] if self.cache is None else [self.cache]
        return min(self.bytes_with(n_a, n_b, d, cached) for cached in choices)

    def bytes_with(self, n_a: int, n_b: int, d: int, cached: bool) -> int:
        """Peak memory of a match: the rows with the SAEs and their folded copies behind them, the lists, one block of
        the product, and the cache."""
        n, m = sorted((n_a, n_b))
        block = min(self.block_rows, n) * m
        return problem_bytes(n, m, d) + lists_bytes(n, m, cached) + 8 * block + (2 * n * m if cached else 0)

    def use_cache(self, n_a: int, n_b: int, d: int) -> bool:
        """Whether the inner products are kept.

        Raises:
            UserError: the problem does not fit either way, or a cache that was asked for does not.
        """
        for cached in [True, False] if self.cache is None else [self.cache]:
            if self.bytes_with(n_a, n_b, d, cached) <= self.memory():
                return cached
        self.check_memory(n_a, n_b, d)
        return False

    def memory(self) -> float:
        """Bytes that a match may use."""
        if self.memory_limit_gib is not None:
            return self.memory_limit_gib * GIB
        return float(psutil.virtual_memory().available)

    def warm_up(self, problem: MatchingProblem | SimilarityProblem) -> None:
        """Compile the kernels, or load them, on a small problem of the same kind."""
        if type(problem) in _WARM:
            return
        _WARM.add(type(problem))
        generator = torch.Generator().manual_seed(0)
        solver = CertifiedSolver(cache=self.cache, verify=self.verify)
        if isinstance(problem, SimilarityProblem):
            solver.solve_similarity(SimilarityProblem(torch.rand(24, 30, generator=generator)))
        else:
            left, right = (torch.rand(n, 8, generator=generator) for n in (24, 30))
            solver.solve(MatchingProblem(left, right))

    def solve(self, problem: MatchingProblem) -> Solution:
        """The optimal matching and its proof.

        Raises:
            UserError: too little memory, or NaN and infinity in the problem.
        """
        started = time.monotonic()
        n_a, n_b = problem.shape
        d = problem.left.shape[1]
        cached = self.use_cache(n_a, n_b, d)
        problem.check()
        if (outliers := describe_outliers(problem)) is not None:
            logger.warning("%s", outliers)
        left, right = (side.contiguous().numpy() for side in (problem.left, problem.right))
        narrower, wider = (left, right) if n_a <= n_b else (right, left)
        limits = Limits(
            cached, self.block_rows, torch.get_num_threads(), self.verify,
            None if self.time_limit_s is None else started + self.time_limit_s,
            self._most_slots(n_a, n_b, d, cached),
            self.progress,
        )  # fmt: skip
        found = solve_points(
            narrower, wider, limits, rejection_cost=problem.rejection_cost,
            n_pairs=problem.n_pairs, make_product=partial(make_product, device=self.device, precision=self.product),
        )  # fmt: skip
        if found.stopped:
            logger.warning(
                "the solver stopped early (%s): the permutation is complete but not proved optimal", found.stopped
            )
        permutation = Permutation.of_narrower(found.partner, n_a, n_b)
        objective = problem.total(found.costs.tolist())
        bound = 0.0 if found.deficit is None else max(0.0, objective - found.deficit)
        statistics = {"seconds/total": time.monotonic() - started, "peak_memory_gib": peak_memory_gib()}
        # Where nothing was rounded, the rounding of the objective itself is left.
        tolerance = found.tolerance or 2.0**-48 * objective
        return Solution(permutation, objective, bound, tolerance, found.statistics | statistics)

    def solve_similarity(self, problem: SimilarityProblem) -> Solution:
        """The largest sum of given similarities, with its proof."""
        from sae_match.matching.by_similarity import match_by_similarity  # it builds on this package

        found = match_by_similarity(
            problem.matrix, memory_limit_gib=self.memory_limit_gib, block_rows=self.block_rows
        )  # fmt: skip
        objective = problem.objective(found.permutation)
        return Solution(found.permutation, objective, objective - 2 * min(problem.shape) * found.gap)

    def _most_slots(self, n_a: int, n_b: int, d: int, cached: bool) -> int:
        """List entries that memory allows."""
        room = self.memory() - self.bytes_with(n_a, n_b, d, cached)
        return most_slots(min(n_a, n_b), max(n_a, n_b), cached, room)


def peak_memory_gib() -> float:
    """Largest resident size of this process so far, GiB."""
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / GIB
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / GIB if sys.platform == "darwin" else peak * 1024 / GIB
