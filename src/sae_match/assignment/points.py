"""The assignment of points at the least sum of squared distances, exact and with its proof."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, replace

import numpy as np

from sae_match.assignment.arrays import Float32, Float64, Int64
from sae_match.assignment.auction_kernels import auction
from sae_match.assignment.compiled import prepare_kernels
from sae_match.assignment.fixed_pairs import exactly
from sae_match.assignment.grid import grid_problem, is_negligible, is_wide, row_classes, row_norms
from sae_match.assignment.lazy import LazyAssignment
from sae_match.assignment.list_kernels import BIDS, EXACT, REMADE, squared_distances
from sae_match.assignment.products import MakeProduct, NumpyProduct
from sae_match.assignment.proof import Attempt, row_costs, search
from sae_match.assignment.refine import exact_factors, solve_exactly
from sae_match.assignment.rows import FactorRows, split

logger = logging.getLogger(__name__)

EXACT_BLOCK_ROWS = 256
"""Rows that the exact solution computes at a time, in float64."""
OUT = -1
"""A row that stays out."""


@dataclass(frozen=True)
class Limits:
    """How a search works; nothing of it changes an optimum that is reached.

    Attributes:
        cached: keep all inner products (2 bytes each).
        block_rows: rows of inner products computed at a time.
        threads: of the quantization and the lists.
        verify: prove dual feasibility over all pairs in a pass of its own; without it the bound rests on the lists.
        deadline: time.monotonic() at which the search ends with a complete assignment; None = never.
        most_slots: list entries (13 bytes each) at which it ends.
        progress: show bars.
    """

    cached: bool = True
    block_rows: int = 1024
    threads: int = 1
    verify: bool = True
    deadline: float | None = None
    most_slots: int = 1 << 40
    progress: bool = False


@dataclass(frozen=True)
class Optimum:
    """An assignment of rows to columns, and how far it can be from the best.

    Attributes:
        partner: [n] column of every row, `OUT` where it stays out.
        costs: squared distances of the rows that are not out and their columns, in float64.
        deficit: no assignment costs less by more than this, up to `tolerance`; None = no bound is known.
        tolerance: uncertainty of the deficit from rounding; 0 = nothing was rounded.
        stopped: why the search ended early, or None.
        duals: [n] u and [m] v with u_i + v_j <= cost of (i, j), v <= 0 where n < m, and sum u + sum v the bound; None
            where rows may stay out, where no bound is known, and where the rows' norms are too far apart for one grid.
        statistics: seconds by phase and counts.
    """

    partner: Int64
    costs: Float64
    deficit: float | None
    tolerance: float
    stopped: str | None
    duals: tuple[Float64, Float64] | None
    statistics: dict[str, float]


def pair_costs(left: Float32, right: Float32, partner: Int64, threads: int) -> Float64:
    """Squared distance of every row that is not out and its partner, in float64."""
    rows = np.flatnonzero(partner != OUT)
    if len(rows) < len(left):
        left = left[rows]
    chosen, out = partner[rows], np.empty(len(rows))
    split(
        threads, len(rows), lambda low, high: squared_distances(left[low:high], right, chosen[low:high], out[low:high])
    )
    return out


def solve_points(
    left: Float32,
    right: Float32,
    limits: Limits,
    *,
    make_product: MakeProduct = NumpyProduct,
    rejection_cost: float | None = None,
    n_pairs: int | None = None,
) -> Optimum:
    """The least sum of squared distances; the lexicographically least assignment that reaches it.

    Args:
        left, right: [n, D] and [m, D] finite, n <= m, C-contiguous.
        make_product: computes inner products; its precision changes the time, not the answer.
        rejection_cost: what a row that stays out costs; None = no row may.
        n_pairs: exactly so many rows get a column; None = all.

    Raises:
        UserError: the product is less precise than it says.
    """
    prepare_kernels(auction)
    if is_wide(row_norms(left, limits.threads), row_norms(right, limits.threads)):
        return _exactly(left, right, limits, rejection_cost, n_pairs)
    found = _on_grid(left, right, limits, make_product, rejection_cost, n_pairs)
    if found.stopped is None:
        out = (len(left) - len(found.costs)) * (rejection_cost or 0.0)
        # An objective of 0 is optimal, whatever was rounded.
        if (found.costs.any() or out) and not is_negligible(found.tolerance, found.costs, out):
            logger.info("rounding may have decided between assignments that cost almost the same: solving exactly")
            return _exactly(left, right, limits, rejection_cost, n_pairs)
    return found


def _on_grid(
    left: Float32, right: Float32, limits: Limits, make_product: MakeProduct, rejection_cost: float | None,
    n_pairs: int | None,
) -> Optimum:  # fmt: skip
    """All costs rounded to multiples of one step: exact up to `Optimum.tolerance`."""
    begun = time.perf_counter()
    grid = grid_problem(left, right, make_product, limits.threads)
    similarity = FactorRows(grid.product, limits.cached, limits.block_rows, limits.threads)
    set_up = time.perf_counter() - begun

    def attempt(rejection: int | None) -> Attempt:
        costs = grid.costs if rejection is None else grid.with_rejection(rejection)
        lazy = LazyAssignment(
            costs, grid.row_cost, similarity, limits.deadline, limits.most_slots, limits.progress,
            # A private column of its own sets a row apart.
            row_class=row_classes(costs.left, costs.left_norm) if rejection is None else None,
        )  # fmt: skip
        lazy.seconds["setup"] = set_up
        return Attempt(search(lazy, limits.verify), lazy, lambda partner: row_costs(lazy, partner))

    if n_pairs is not None:
        found = exactly(n_pairs, attempt, grid.steps(math.inf))
    else:
        found = attempt(None if rejection_cost is None else grid.steps(rejection_cost))
    deficit = found.proof.deficit
    duals: tuple[Float64, Float64] | None = None
    if found.proof.dual is not None and rejection_cost is None and n_pairs is None:
        # A column that is left over has the highest price; less that, it adds nothing to the bound.
        price = found.lazy.prices.price
        highest = int(price.max()) if found.lazy.spares else 0
        step = np.float64(grid.step)
        duals = (found.proof.dual + grid.row_cost + highest) * step, (price - highest) * step
    deficit_here = None if deficit is None else deficit * grid.step
    return _optimum(found, (left, right), limits, deficit_here, grid.tolerance, duals, grid.product.half)


def _exactly(
    left: Float32, right: Float32, limits: Limits, rejection_cost: float | None, n_pairs: int | None
) -> Optimum:  # fmt: skip
    """No rounding of costs at all: exact for the float32 rows as they are."""
    exact = exact_factors(
        left, right, rejection_cost=rejection_cost, cached=limits.cached,
        block_rows=min(limits.block_rows, EXACT_BLOCK_ROWS), threads=limits.threads, deadline=limits.deadline,
        progress=limits.progress, most_slots=limits.most_slots,
    )  # fmt: skip

    def attempt(rejection: int | None) -> Attempt:
        return solve_exactly(replace(exact) if rejection is None else exact.with_rejection(rejection))

    if n_pairs is not None:
        found = exactly(n_pairs, attempt, 1 << exact.bits)
    else:
        found = attempt(None if rejection_cost is None else exact.units(rejection_cost))
    deficit = None if found.proof.deficit is None else math.ldexp(float(found.proof.deficit), exact.lowest)
    return _optimum(found, (left, right), limits, deficit, 0.0, None, False)


def _optimum(
    found: Attempt, points: tuple[Float32, Float32], limits: Limits, deficit: float | None, tolerance: float,
    duals: tuple[Float64, Float64] | None, half: bool,
) -> Optimum:  # fmt: skip
    proof, lazy = found.proof, found.lazy
    statistics = {f"seconds/{phase}": seconds for phase, seconds in lazy.seconds.items()}
    statistics |= {
        "half_product": float(half),
        "row_remakes": float(lazy.counters[REMADE]),
        "bids": float(lazy.counters[BIDS]),
        "augmenting_paths": float(lazy.augmentations),
        "exact_pairs": float(lazy.counters[EXACT]),
        "rows_computed": float(lazy.similarity.rows_computed),
        "cached": float(lazy.similarity.cached),
        "rows_with_ties": float(proof.ties),
        "stopped_early": float(proof.stopped is not None),
    }
    partner = np.where(proof.partner < lazy.m, proof.partner, OUT).astype(np.int64)
    costs = pair_costs(*points, partner, limits.threads)
    return Optimum(partner, costs, deficit, tolerance, proof.stopped, duals, statistics)
