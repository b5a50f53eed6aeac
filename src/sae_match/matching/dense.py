"""The dense exact solver: shortest augmenting paths on the full float64 cost matrix, with the dual bound they leave.

The cost matrix is rounded to a grid of 2^-40 of its scale and held as whole numbers of grid steps in float64. Every
sum and difference that the solver and its bound form is then exact, so the outcome depends on the rounded matrix alone,
and of equal optima the lexicographically least one is returned. Blocking and threads can move a float64 product across
a rounding boundary, by one grid step: only assignments that tie within `Solution.tolerance` could differ.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field

from sae_match.assignment.arrays import Float64, Int32
from sae_match.assignment.dense import solve_dense
from sae_match.assignment.grid import is_negligible, row_classes
from sae_match.assignment.ties import TightPairs, canonical
from sae_match.matching.permutation import Permutation
from sae_match.matching.problem import MatchingProblem, SimilarityProblem, describe_outliers, norms
from sae_match.matching.solution import Solution, Solver
from sae_match.options import option

logger = logging.getLogger(__name__)

GRID_BITS = 40
"""Resolution of the cost matrix: 2^-40 of its largest possible entry, about 1e-12."""


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

    def warm_up(self, problem: MatchingProblem | SimilarityProblem) -> None:
        """Compile the kernels, or load them: the third row of these is left to the augmenting paths."""
        solve_dense(np.tile([0.0, 0.0, 1.0, 1.0], (3, 1)))

    def solve(self, problem: MatchingProblem) -> Solution:
        """Optimal matching and its lower bound.

        Raises:
            UserError: too little memory, NaN or infinity in the problem, a rejection cost or a number of pairs.
        """
        n_a, n_b = problem.shape
        self.check_complete(problem)
        rows, columns = (problem.left, problem.right) if n_a <= n_b else (problem.right, problem.left)
        cost, step = grid_cost(rows, columns, self.block_rows)
        assigned, price, _ = solve_dense(cost)
        like = row_classes(rows.numpy(), norms(rows).numpy())
        row_dual, tight = row_duals(cost, price, like, self.block_rows)
        deficit = math.fsum([*(cost[np.arange(len(cost)), assigned] - row_dual), *-price])
        # Columns that are left over have the price 0, and no other one is dearer.
        least, _ = canonical(assigned.astype(np.int32), TightPairs(*tight, at_ceiling=price == 0, like=like))
        permutation = Permutation.of_narrower(least, n_a, n_b)
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
        """The largest sum of given similarities, in float64; no bound of its own."""
        n_a, n_b = problem.shape
        matrix = problem.matrix if n_a <= n_b else problem.matrix.T
        assigned, _, _ = solve_dense(matrix.double().neg().contiguous().numpy())
        permutation = Permutation.of_narrower(assigned, n_a, n_b)
        return Solution(permutation, problem.objective(permutation))


def grid_cost(rows: torch.Tensor, columns: torch.Tensor, block_rows: int) -> tuple[Float64, float]:
    """Squared distances [n, m] in whole grid steps, and the step in cost units."""
    right = columns.to(torch.float64)
    row_norms, column_norms = (side.to(torch.float64).square().sum(dim=1) for side in (rows, right))
    largest = float(row_norms.max() + column_norms.max())
    step = 2.0 ** (math.ceil(math.log2(largest)) - GRID_BITS) if largest > 0 else 1.0
    cost = np.empty((len(rows), len(columns)), dtype=np.float64)
    for start in range(0, len(rows), block_rows):
        part = slice(start, start + block_rows)
        block = torch.from_numpy(cost[part])
        torch.addmm(column_norms[None, :], rows[part].to(torch.float64), right.T, alpha=-2.0, out=block)
        block.add_(row_norms[part, None]).div_(step).round_()
    return cost, step


def row_duals(
    cost: Float64, price: Float64, like: Int32, block_rows: int
) -> tuple[Float64, tuple[Int32, Int32]]:  # fmt: skip
    """[n] u_i = min_j (cost_ij - price_j), and the rows and columns of the pairs that reach it.

    With the prices, none of them above 0 where n < m, the sum of u is a lower bound.

    Args:
        like: [n] the first row that is equal to each row; pairs are listed for that one only.
    """
    dual, tight = np.empty(len(cost)), []
    for start in range(0, len(cost), block_rows):
        part = slice(start, start + block_rows)
        reduced = cost[part] - price
        dual[part] = reduced.min(axis=1)
        first = like[part] == np.arange(start, start + len(reduced))
        i, j = np.nonzero((reduced == dual[part, None]) & first[:, None])
        tight.append(((start + i).astype(np.int32), j.astype(np.int32)))
    rows, columns = (np.concatenate(side) for side in zip(*tight, strict=True))
    return dual, (rows, columns)
