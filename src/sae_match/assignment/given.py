"""The assignment with the largest sum of given inner products, exact and with its proof.

The cost of a pair is 2 c - 2 S_ij with a power of two c above all magnitudes. S itself is read wherever a product of
factors would be computed, and nothing of its size is made beside it: rows are quantized whenever they are needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sae_match.assignment.arrays import MAX_SPREAD, Costs, Float32, Float64, Int64
from sae_match.assignment.auction_kernels import auction
from sae_match.assignment.compiled import prepare_kernels
from sae_match.assignment.exact_numbers import as_floats
from sae_match.assignment.grid import cost_bits, is_negligible
from sae_match.assignment.lazy import LazyAssignment
from sae_match.assignment.proof import Proof, proved, search
from sae_match.assignment.refine import exact_similarities, solve_exactly
from sae_match.assignment.rows import GivenRows

SPAN_BITS = 2
"""The largest cost, 2 - 2 (-1) = 4 in units of the scale, as a power of two."""
SAFE_SCALE = (2.0**-100, 2.0**100)
"""Largest magnitudes whose multiples stay within float32's range."""
MANY_ALIKE = 16
"""Zero columns (features of B that never fire) from which on they are treated as one: rows that compete for columns
that are all alike would bid for ever, and each would have to list them all."""
OUT_OF_REACH = 8
"""What is added to the cost of a column that no row shall take."""


@dataclass(frozen=True)
class GivenSolution:
    """An assignment of rows to columns and how far it can be from the best.

    Attributes:
        partner: [N] column of every row.
        deficit: by how much the sum of inner products of another assignment can be larger; 0 = proved optimal, up to
            `tolerance`. None = no bound is known.
        tolerance: uncertainty of the deficit from rounding; 0 = nothing was rounded.
        stopped: why the search ended early, or None.
        price: [m] duals of the columns for the costs -matrix, at most 0 where a column is left over; None where the
            proof was completed in exact numbers.
    """

    partner: Int64
    deficit: float | None
    tolerance: float
    stopped: str | None
    price: Float64 | None


def solve_given(
    matrix: Float32, block_rows: int, threads: int, slots: int, deadline: float | None = None
) -> GivenSolution:
    """Every row gets a column of its own so that the sum of inner products is largest; the least such assignment.

    Args:
        matrix: [N, m] finite inner products, N <= m, C-contiguous.
        block_rows, threads: as in `QuantizedRows`; neither changes the answer.
        slots: list entries (13 bytes each) at which the search gives up with a complete assignment.
        deadline: time.monotonic() at which it does; None = never.
    """
    largest, smallest = matrix.max(axis=1), matrix.min(axis=1)
    live, indifferent = np.flatnonzero(smallest < largest), np.flatnonzero(smallest == largest)
    if len(live) == 0:
        return GivenSolution(np.arange(len(matrix)), 0.0, 0.0, None, np.zeros(matrix.shape[1]))
    prepare_kernels(auction)
    costs, row_cost = given_costs(matrix, live)
    wide = is_wide(matrix)
    if not wide:
        rows = GivenRows(matrix, live, block_rows, threads)
        proof, price = _solve_on_grid(costs, row_cost, rows, indifferent, slots, deadline)
        # Costs are twice as far apart as the inner products that they come from.
        deficit = None if proof.deficit is None else proof.deficit / costs.unit / 2.0
        tolerance = 0.0 if is_whole(matrix, 2.0 * costs.unit, block_rows) else len(live) / costs.unit
        solution = GivenSolution(
            proof.partner.astype(np.int64), deficit, tolerance, proof.stopped, price / costs.unit / 2.0
        )  # fmt: skip
        values = np.abs(matrix[np.arange(len(matrix)), solution.partner].astype(np.float64))
    if wide or (solution.stopped is None and not is_negligible(solution.tolerance, values)):
        exact = exact_similarities(
            costs, block_rows=block_rows, threads=threads, cached=False, deadline=deadline, most_slots=slots,
            indifferent=indifferent,
        )  # fmt: skip
        proof = solve_exactly(exact).proof
        deficit = None if proof.deficit is None else math.ldexp(float(proof.deficit), exact.lowest - 1)
        duals = None
        if proof.stopped:
            highest = exact.ceiling if exact.spares else 0
            duals = as_floats([v - highest for v in exact.column], exact.lowest - 1)
        solution = GivenSolution(proof.partner.astype(np.int64), deficit, 0.0, proof.stopped, duals)
    return solution


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


def is_whole(matrix: Float32, unit: float, block_rows: int) -> bool:
    """Whether all entries are whole multiples of 1 / unit, a power of two: none was rounded."""
    for start in range(0, len(matrix), block_rows):
        block = matrix[start : start + block_rows] * np.float64(unit)
        if not (block == np.rint(block)).all():
            return False
    return True


def is_wide(matrix: Float32) -> bool:
    """Whether the largest magnitudes of rows, or of columns, are too far apart for one grid."""
    for axis in (0, 1):
        largest = np.maximum(matrix.max(axis=axis), -matrix.min(axis=axis))
        largest = largest[largest > 0].astype(np.float64)
        if len(largest) and not SAFE_SCALE[0] <= largest.max() <= min(SAFE_SCALE[1], MAX_SPREAD * largest.min()):
            return True
    return False


def _solve_on_grid(
    costs: Costs, row_cost: Int64, rows: GivenRows, indifferent: Int64, slots: int, deadline: float | None
) -> tuple[Proof, Int64]:
    """The problem with its zero columns treated as one, where they are many; as it is, where that does not do.

    With it, the prices of the columns.
    """
    matrix = costs.left
    zero = np.flatnonzero((matrix.min(axis=0) == 0) & (matrix.max(axis=0) == 0))
    # Rows without a positive value want a zero column, all of them.
    wanting = int((matrix.max(axis=1)[costs.given] <= 0).sum())
    if len(zero) >= max(MANY_ALIKE, wanting):
        lazy = LazyAssignment(
            _staying_out(costs, zero), row_cost, rows, deadline, slots, indifferent=indifferent, alike=zero
        )  # fmt: skip
        # More rows may want a zero column than there are: then these have to be told apart.
        if lazy.run() is None and (lazy.held.partner >= lazy.m).sum() <= len(zero):
            # No other row competes for a private column. At the highest price, like those that spare rows hold, it
            # lets its row be tied with other columns only where the row could as well have a zero column left over.
            lazy.prices.price[lazy.m :] = lazy.prices.price.max()
            price = lazy.prices.price[: lazy.m] - lazy.prices.price.max()
            price[zero] = 0
            return proved(lazy), price
    lazy = LazyAssignment(costs, row_cost, rows, deadline, slots, indifferent=indifferent)
    proof = search(lazy)
    return proof, lazy.prices.price - (lazy.prices.price.max() if lazy.spares else 0)


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
