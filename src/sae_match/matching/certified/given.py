"""Matching by inner products that are given, not computed from factors: the certified solver on a matrix in memory.

The cost of a pair is 2 c - 2 S_ij with a power of two c above all of them; with c = 1, the squared distance of two unit
vectors with that inner product. S itself is read
wherever a product of factors would be computed, and nothing of its size is made beside it: rows are quantised
whenever they are asked for. (A cache of them, half as large as S, made the search no faster.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sae_match.matching.certified.arrays import NO_POTENTIALS, Costs, Float32, Int64
from sae_match.matching.certified.exact_numbers import lowest_exponent
from sae_match.matching.certified.grid import cost_bits
from sae_match.matching.certified.kernel_cache import prepare_kernels
from sae_match.matching.certified.lazy import LazyAssignment
from sae_match.matching.certified.proof import Proof, complete, prove
from sae_match.matching.certified.refine import ExactProblem, solve_exactly
from sae_match.matching.certified.similarity import QuantisedRows
from sae_match.matching.certified.workspace import Stopped
from sae_match.matching.solution import NEGLIGIBLE
from sae_match.matching.spread import MAX_SPREAD

SPAN_BITS = 2
"""The largest cost, 2 - 2 (-1) = 4 in units of the scale, as a power of two."""
SAFE_SCALE = (2.0**-100, 2.0**100)
"""Largest magnitudes whose multiples stay within float32's range."""
MANY_ALIKE = 16
"""Zero columns (features of B that never fire) from which on they are treated as one: rows that compete for columns
that are all alike would bid for ever, and each would have to list them all."""
OUT_OF_REACH = 8
"""What is added to the cost of a column that nobody shall take."""


class GivenRows(QuantisedRows):
    """Rows of given inner products.

    Args:
        matrix: [N, m] inner products.
        rows: [n] which of its rows take part.
        block_rows, threads: as in `QuantisedRows`.
    """

    def __init__(self, matrix: Float32, rows: Int64, block_rows: int, threads: int) -> None:
        super().__init__(len(rows), matrix.shape[1], False, block_rows, threads)
        self.matrix, self.rows = matrix, rows

    def block(self, rows: Int64 | slice) -> Float32:
        """[r, m] a copy of some rows."""
        return self.matrix[self.rows[rows]]

    def products(self, rows: Int64) -> Float32:
        """[r, m] a copy of some rows."""
        return self.block(rows)


@dataclass(frozen=True)
class GivenSolution:
    """An assignment of rows to columns and how far it can be from the best.

    Attributes:
        partner: [N] column of every row.
        deficit: by how much the sum of inner products of another assignment can be larger; 0 = proved optimal, up to
            `tolerance`. None = no bound is known.
        tolerance: uncertainty of the deficit from rounding; 0 = nothing was rounded.
        stopped: why the search ended early, or None.
    """

    partner: Int64
    deficit: float | None
    tolerance: float
    stopped: str | None


class Problem(NamedTuple):
    """What both ways to solve a problem need: see `Workspace`."""

    costs: Costs
    row_cost: Int64
    rows: GivenRows
    indifferent: Int64
    most_slots: int


def solve_given(matrix: Float32, block_rows: int, threads: int, most_slots: int) -> GivenSolution:
    """Every row gets a column of its own so that the sum of inner products is largest; the least such assignment.

    Args:
        matrix: [N, m] finite inner products, N <= m, C-contiguous.
        block_rows, threads: as in `QuantisedRows`; neither changes the answer.
        most_slots: list entries (13 bytes each) at which the search gives up with a complete assignment.
    """
    largest = matrix.max(axis=1)
    constant = matrix.min(axis=1) == largest
    live, indifferent = np.flatnonzero(~constant), np.flatnonzero(constant)
    if len(live) == 0:
        return GivenSolution(np.arange(len(matrix)), 0.0, 0.0, None)
    prepare_kernels()
    if is_wide(matrix):
        return _solve_exactly(matrix, live, indifferent, block_rows, threads, most_slots)
    costs, row_cost = given_costs(matrix, live)
    problem = Problem(costs, row_cost, GivenRows(matrix, live, block_rows, threads), indifferent, most_slots)
    zero = np.flatnonzero((matrix.min(axis=0) == 0) & (matrix.max(axis=0) == 0))
    # Rows without a positive value want a zero column, all of them.
    treat_as_one = len(zero) >= max(MANY_ALIKE, int((largest[live] <= 0).sum()))
    proof = (_with_one_pool(problem, zero) if treat_as_one else None) or _with_every_column(problem)
    # Costs are twice as far apart as the inner products that they come from.
    deficit = None if proof.deficit is None else proof.deficit / costs.unit / 2.0
    solution = GivenSolution(proof.partner.astype(np.int64), deficit, len(live) / costs.unit, proof.stopped)
    if proof.stopped is None and not _is_negligible(solution, matrix):
        return _solve_exactly(matrix, live, indifferent, block_rows, threads, most_slots)
    return solution


def is_wide(matrix: Float32) -> bool:
    """Whether the largest magnitudes of rows, or of columns, are too far apart for one grid."""
    for axis in (0, 1):
        largest = np.maximum(matrix.max(axis=axis), -matrix.min(axis=axis))
        largest = largest[largest > 0].astype(np.float64)
        if len(largest) and not SAFE_SCALE[0] <= largest.max() <= min(SAFE_SCALE[1], MAX_SPREAD * largest.min()):
            return True
    return False


def _is_negligible(solution: GivenSolution, matrix: Float32) -> bool:
    """Whether rounding cannot have decided anything but ties: it is small against the pairs' ordinary values."""
    found = np.sort(np.abs(matrix[np.arange(len(matrix)), solution.partner].astype(np.float64)))
    return solution.tolerance <= NEGLIGIBLE * float(found[: len(found) - math.ceil(len(found) / 100)].sum())


def _solve_exactly(
    matrix: Float32, live: Int64, indifferent: Int64, block_rows: int, threads: int, most_slots: int
) -> GivenSolution:
    """No rounding at all: exact for the float32 values as they are."""
    n, m = len(live), matrix.shape[1]
    # The cost -2 S is a multiple of twice what S is a multiple of.
    lowest = lowest_exponent(matrix) + 1
    top = np.maximum(matrix.max(axis=1), -matrix.min(axis=1))[live].astype(np.float64)
    costs, _ = given_costs(matrix, live)
    problem = ExactProblem(
        costs._replace(potentials=NO_POTENTIALS._replace(lowest=lowest), column_cost=np.zeros(m, np.int64), gamma=0.0),
        (top, np.ones(m)), [0] * n, [0] * m, [], math.frexp(float(top.max()))[1] + 8 - lowest, cost_bits(n) - 1,
        block_rows, threads, False, None, most_slots, False, indifferent,
    )  # fmt: skip
    proof = solve_exactly(problem).proof
    deficit = None if proof.deficit is None else math.ldexp(float(proof.deficit), lowest - 1)
    return GivenSolution(proof.partner.astype(np.int64), deficit, 0.0, proof.stopped)


def given_costs(matrix: Float32, rows: Int64) -> tuple[Costs, Int64]:
    """Costs of those rows of given inner products, and the rows' own squared norms (c each), in grid steps."""
    n, m = len(rows), matrix.shape[1]
    one = 2 ** (cost_bits(n) - SPAN_BITS)
    unit = one / 2.0 ** math.ceil(math.log2(max(float(matrix.max()), -float(matrix.min()))))
    costs = Costs(
        left=matrix,
        right=np.empty((m, 0), np.float32),
        given=rows,
        left_norm=np.ones(n),
        right_norm=np.ones(m, np.float32),
        column_cost=np.full(m, one, np.int64),
        private_cost=np.empty(0, np.int64),
        unit=unit,
        gamma=0.0,
    )
    return costs, np.full(n, one, np.int64)


def _with_every_column(problem: Problem) -> Proof:
    """The problem as it is."""
    costs, row_cost, rows, indifferent, most_slots = problem
    lazy = LazyAssignment(costs, row_cost, rows, None, most_slots, indifferent=indifferent)
    stopped = lazy.run()
    return _proved(lazy) if stopped is None else complete(lazy, stopped)


def _with_one_pool(problem: Problem, zero: Int64) -> Proof | None:
    """The problem with its `zero` columns treated as one; None where it was not solved, or not so that it counts."""
    costs, row_cost, rows, indifferent, most_slots = problem
    costs = _staying_out(costs, zero)
    lazy = LazyAssignment(costs, row_cost, rows, None, most_slots, indifferent=indifferent, alike=zero)
    # More rows may want a zero column than there are: then these have to be told apart.
    if lazy.run() is not None or (lazy.held.partner >= lazy.m).sum() > len(zero):
        return None
    # Nobody competes for a private column. At the highest price, like those that spare rows hold, it lets its row be
    # tied with other columns only where the row could as well have a zero column that is left over.
    lazy.prices.price[lazy.m :] = lazy.prices.price.max()
    return _proved(lazy)


def _staying_out(costs: Costs, zero: Int64) -> Costs:
    """The same problem where a row that takes one of the `zero` columns stays out instead, at the same cost.

    Any number of rows may stay out, so the optimum is that of the problem itself if they are not too many, and a bound
    on it in any case.
    """
    n, one = len(costs.given), int(costs.column_cost[0])
    column_cost = costs.column_cost.copy()
    column_cost[zero] += OUT_OF_REACH * one
    return costs._replace(
        column_cost=np.concatenate([column_cost, np.zeros(n, np.int64)]), private_cost=np.full(n, one, np.int64)
    )


def _proved(lazy: LazyAssignment) -> Proof:
    try:
        return prove(lazy, verify=True)
    except Stopped as late:  # memory ran out in the proof: the answer stands, the bound is what is known
        return complete(lazy, late)
