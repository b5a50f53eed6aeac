"""The dense exact solver: scipy's shortest augmenting paths on the full cost matrix, with a dual certificate.

The cost matrix is rounded to a grid of 2^-40 of its scale and held as whole numbers of grid steps in float64. Every
sum and difference that the solver and the certificate form is then exact, so the outcome depends on the rounded
matrix alone and ties in it are true ties, broken by index. Blocking and threads can move a float64 product across a
rounding boundary, by one grid step: only assignments that tie within `Solution.tolerance` could differ.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from scipy.optimize import linear_sum_assignment

from sae_match.assignment.grid import is_negligible
from sae_match.matching.permutation import Permutation
from sae_match.matching.problem import MatchingProblem, SimilarityProblem, describe_outliers
from sae_match.matching.solution import Solution, Solver
from sae_match.options import option

logger = logging.getLogger(__name__)

GRID_BITS = 40
"""Resolution of the cost matrix: 2^-40 of its largest possible entry, about 1e-12."""
Floats = npt.NDArray[np.float64]


@option
class DenseSolver(Solver):
    """Solver for problems whose float64 cost matrix fits into memory.

    Exact where no feature's squared norm is more than about 1,000 times the cost of an ordinary pair. Beyond that the
    grid of 2^-40 of the largest norm is too coarse for most pairs: it warns, and the gap it claims is above 0.
    """

    name: str = "dense"
    block_rows: Annotated[int, Field(ge=1)] = 1024
    """Rows of the cost matrix computed at a time; changes memory use, not the result."""

    advice: ClassVar[str] = "solver=certified, narrower SAEs or a machine with more memory"

    def required_bytes(self, n_a: int, n_b: int, d: int) -> int:
        """Peak memory of a match: the float64 matrix, the rows in float64 and float32 with the SAEs and their folded
        copies behind them, and one block of temporaries."""
        n, m = sorted((n_a, n_b))
        return 8 * (n * m + 2 * min(self.block_rows, n) * m) + (8 + 3 * 4) * (n + m) * d

    def solve(self, problem: MatchingProblem) -> Solution:
        """Optimal matching and its lower bound.

        Raises:
            UserError: too little memory, NaN or infinity in the problem, a rejection cost or a number of pairs.
        """
        n_a, n_b = problem.shape
        self.check_complete(problem)
        rows, columns = (problem.left, problem.right) if n_a <= n_b else (problem.right, problem.left)
        cost, step = grid_cost(rows, columns, self.block_rows)
        _, assigned = linear_sum_assignment(cost)
        deficit = dual_deficit(cost, assigned, self.block_rows)
        permutation = Permutation.of_narrower(assigned, n_a, n_b)
        objective = problem.objective(permutation)
        bound = max(0.0, objective - deficit * step)
        solution = Solution(permutation, objective, bound, len(rows) * step)
        costs = problem.pair_costs(permutation).numpy()
        if objective == 0 or is_negligible(solution.tolerance, costs):
            return solution
        logger.warning(
            "the cost matrix's resolution of 2^-%d of its largest entry is too coarse for most pairs: the permutation "
            "may not be optimal (solver=certified is exact here)%s",
            GRID_BITS, f"; {outliers}" if (outliers := describe_outliers(problem)) else "",
        )  # fmt: skip
        return replace(solution, lower_bound=max(0.0, bound - solution.tolerance))

    def solve_similarity(self, problem: SimilarityProblem) -> Solution:
        """The largest sum of given similarities, by scipy in float64; no bound of its own."""
        rows, columns = linear_sum_assignment(problem.matrix.numpy(), maximize=True)
        permutation = Permutation.of_pairs(rows, columns, *problem.shape)
        return Solution(permutation, problem.objective(permutation))


def grid_cost(rows: torch.Tensor, columns: torch.Tensor, block_rows: int) -> tuple[Floats, float]:
    """Assignment cost [n, m] in whole grid steps, n <= m, and the step in cost units.

    Squared distances up to a constant per row; where n == m also up to a constant per column, which leaves minus
    twice the inner product: the form in which scipy's solver is several times faster.
    """
    right = columns.to(torch.float64)
    column_norms = right.square().sum(dim=1)
    largest = float(rows.to(torch.float64).square().sum(dim=1).max()) + float(column_norms.max())
    step = 2.0 ** (math.ceil(math.log2(largest)) - GRID_BITS) if largest > 0 else 1.0
    offset = torch.zeros_like(column_norms) if len(rows) == len(columns) else column_norms
    cost = np.empty((len(rows), len(columns)), dtype=np.float64)
    for start in range(0, len(rows), block_rows):
        block = torch.from_numpy(cost[start : start + block_rows])
        left = rows[start : start + block_rows].to(torch.float64)
        torch.addmm(offset[None, :], left, right.T, beta=1.0, alpha=-2.0, out=block)
        block.div_(step).round_()
    return cost, step


def dual_deficit(cost: Floats, assigned: npt.NDArray[np.int64], block_rows: int) -> float:
    """Assignment cost minus the best dual bound found, in grid steps: 0 proves `assigned` optimal.

    Column potentials v <= 0 are shortest-path distances in the residual graph (Bellman-Ford, one pass over the matrix
    per round); with u_i = min_j(cost_ij - v_j) they are feasible by construction, whether or not the rounds
    converged, so sum(u) + sum(v) is a valid lower bound in any case.
    """
    n, m = cost.shape
    own = cost[np.arange(n), assigned]
    potential = np.zeros(m)
    # A shortest path visits each row at most once, so an optimal assignment converges within n rounds.
    for _ in range(n + 1):
        reached = _relax(cost, potential[assigned] - own, block_rows)
        improved = np.minimum(potential[assigned], reached[assigned])
        if np.array_equal(improved, potential[assigned]):
            break
        potential[assigned] = improved
    bound = potential.sum()
    for start in range(0, n, block_rows):
        bound += (cost[start : start + block_rows] - potential).min(axis=1).sum()
    return float(own.sum() - bound)


def _relax(cost: Floats, base: Floats, block_rows: int) -> Floats:
    """min over rows i of base_i + cost_ij, for every column j."""
    reached = np.full(cost.shape[1], np.inf)
    for start in range(0, len(cost), block_rows):
        block = cost[start : start + block_rows] + base[start : start + block_rows, None]
        np.minimum(reached, block.min(axis=0), out=reached)
    return reached
