"""The certified solver: exact one-to-one matching with a proof, in a quarter of the dense matrix's memory or less."""

from __future__ import annotations

import logging
import math
import sys
import time
from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
import psutil
import torch
from pydantic import Field
from torch import Tensor

from sae_match.files import GIB
from sae_match.matching.certified.auction_kernels import auction
from sae_match.matching.certified.fixed_pairs import exactly
from sae_match.matching.certified.grid import grid_problem, row_classes
from sae_match.matching.certified.lazy import LazyAssignment
from sae_match.matching.certified.list_kernels import BIDS, EXACT, REMADE
from sae_match.matching.certified.proof import Attempt, row_costs, search
from sae_match.matching.certified.refine import exact_factors, solve_exactly
from sae_match.matching.certified.rows import FactorRows
from sae_match.matching.certified.workspace import lists_bytes, most_slots
from sae_match.matching.compiled import prepare_kernels
from sae_match.matching.permutation import UNMATCHED, Permutation
from sae_match.matching.problem import MatchingProblem, SimilarityProblem, describe_outliers, is_wide
from sae_match.matching.solution import Solution, Solver, is_negligible, problem_bytes
from sae_match.options import option

logger = logging.getLogger(__name__)

_WARM: set[type] = set()
"""Kinds of problems that this process has solved one of."""
EXACT_BLOCK_ROWS = 256
"""Rows that the exact solution computes at a time, in float64."""


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
        cached = self.use_cache(*problem.shape, problem.left.shape[1])
        problem.check()
        prepare_kernels(auction)
        if is_wide(problem):
            outliers = describe_outliers(problem)
            if outliers is not None:
                logger.warning("%s", outliers)
            return self._solve_exactly(problem, cached, started)
        solution = self._solve_on_grid(problem, cached, started)
        stopped = solution.statistics["stopped_early"] > 0
        if not stopped and not is_negligible(problem, solution):
            logger.info("rounding may have decided between assignments that cost almost the same: solving exactly")
            return self._solve_exactly(problem, cached, started)
        return solution

    def solve_similarity(self, problem: SimilarityProblem) -> Solution:
        """The largest sum of given similarities, with its proof."""
        from sae_match.matching.by_similarity import match_by_similarity  # it builds on this package

        found = match_by_similarity(
            problem.matrix, memory_limit_gib=self.memory_limit_gib, block_rows=self.block_rows
        )  # fmt: skip
        objective = problem.objective(found.permutation)
        return Solution(found.permutation, objective, objective - 2 * min(problem.shape) * found.gap)

    def _solve_on_grid(self, problem: MatchingProblem, cached: bool, started: float) -> Solution:
        """All costs rounded to multiples of one step: exact up to `Solution.tolerance`."""
        begun = time.perf_counter()
        threads = torch.get_num_threads()
        left, right = _narrower_first(problem)
        grid = grid_problem(left, right, threads)
        similarity = FactorRows(
            grid.left, grid.right, self.device, cached, self.block_rows, threads, grid.costs.gamma
        )  # fmt: skip
        slots = self._most_slots(len(left), len(right), left.shape[1], cached)
        set_up = time.perf_counter() - begun

        def attempt(rejection: int | None) -> Attempt:
            costs = grid.costs if rejection is None else grid.with_rejection(rejection)
            lazy = LazyAssignment(
                costs, grid.row_cost, similarity, self._deadline(started), slots, self.progress,
                # A private column of its own sets a row apart.
                row_class=row_classes(costs.left, costs.left_norm) if rejection is None else None,
            )  # fmt: skip
            lazy.seconds["setup"] = set_up
            return Attempt(search(lazy, self.verify), lazy, lambda partner: row_costs(lazy, partner))

        if problem.n_pairs is not None:
            found = exactly(problem.n_pairs, attempt, grid.steps(math.inf))
        else:
            found = attempt(None if problem.rejection_cost is None else grid.steps(problem.rejection_cost))
        deficit = None if found.proof.deficit is None else found.proof.deficit * grid.step
        return _solution(problem, found, deficit, grid.tolerance, started)

    def _solve_exactly(self, problem: MatchingProblem, cached: bool, started: float) -> Solution:
        """No rounding of costs at all: exact for the float32 rows as they are."""
        left, right = (side.contiguous().numpy() for side in _narrower_first(problem))
        exact = exact_factors(
            left, right, rejection_cost=problem.rejection_cost, cached=cached,
            block_rows=min(self.block_rows, EXACT_BLOCK_ROWS), threads=torch.get_num_threads(),
            deadline=self._deadline(started), progress=self.progress,
            most_slots=self._most_slots(len(left), len(right), left.shape[1], cached),
        )  # fmt: skip

        def attempt(rejection: int | None) -> Attempt:
            return solve_exactly(replace(exact) if rejection is None else exact.with_rejection(rejection))

        if problem.n_pairs is not None:
            found = exactly(problem.n_pairs, attempt, 1 << exact.bits)
        else:
            found = attempt(None if problem.rejection_cost is None else exact.units(problem.rejection_cost))
        deficit = None if found.proof.deficit is None else math.ldexp(float(found.proof.deficit), exact.lowest)
        solution = _solution(problem, found, deficit, 0.0, started)
        # What is left is the rounding of the objective itself.
        return replace(solution, tolerance=2.0**-48 * solution.objective)

    def _deadline(self, started: float) -> float | None:
        return None if self.time_limit_s is None else started + self.time_limit_s

    def _most_slots(self, n: int, m: int, d: int, cached: bool) -> int:
        """List entries that memory allows."""
        return most_slots(n, m, cached, self.memory() - self.bytes_with(n, m, d, cached))


def _narrower_first(problem: MatchingProblem) -> tuple[Tensor, Tensor]:
    left, right = problem.left, problem.right
    return (right, left) if len(left) > len(right) else (left, right)


def _solution(
    problem: MatchingProblem, found: Attempt, deficit: float | None, tolerance: float, started: float
) -> Solution:
    """What the user gets: the permutation in the user's orientation, cost, bound and statistics."""
    proof, lazy = found.proof, found.lazy
    partner = np.where(proof.partner < lazy.m, proof.partner, UNMATCHED)
    permutation = Permutation.of_narrower(partner, *problem.shape)
    objective = problem.objective(permutation)
    lower_bound = 0.0 if deficit is None else max(0.0, objective - deficit)
    if proof.stopped:
        logger.warning(
            "the solver stopped early (%s): the permutation is complete but not proved optimal", proof.stopped
        )
    statistics = {f"seconds/{phase}": seconds for phase, seconds in lazy.seconds.items()}
    statistics |= {
        "seconds/total": time.monotonic() - started,
        "row_remakes": float(lazy.counters[REMADE]),
        "bids": float(lazy.counters[BIDS]),
        "augmenting_paths": float(lazy.augmentations),
        "exact_pairs": float(lazy.counters[EXACT]),
        "rows_computed": float(lazy.similarity.rows_computed),
        "cached": float(lazy.similarity.cached),
        "rows_with_ties": float(proof.ties),
        "stopped_early": float(proof.stopped is not None),
        "peak_memory_gib": peak_memory_gib(),
    }
    return Solution(permutation, objective, lower_bound, tolerance, statistics)


def peak_memory_gib() -> float:
    """Largest resident size of this process so far, GiB."""
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / GIB
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / GIB if sys.platform == "darwin" else peak * 1024 / GIB
