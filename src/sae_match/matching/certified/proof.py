"""From a finished or interrupted search to an answer: duals, ties, feasibility over all pairs, and completion."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from sae_match.matching.certified.arrays import INFINITE, Costs, Float64, Int32, Int64
from sae_match.matching.certified.auction_kernels import COUNTERS
from sae_match.matching.certified.check_kernels import feasible_duals, row_duals, tight_pairs
from sae_match.matching.certified.lazy import LazyAssignment
from sae_match.matching.certified.list_kernels import exact_cost
from sae_match.matching.certified.similarity import split
from sae_match.matching.certified.ties import TightPairs, canonical
from sae_match.matching.certified.workspace import Stopped

logger = logging.getLogger(__name__)

MOST_TIES = 20_000_000
"""Tight pairs that are stored to choose among equal optima."""
COMPLETION_BLOCK, HASTY_BLOCK = 2048, 128
"""Rows that are completed together, by an assignment problem of their own; the second where most rows are still free:
a search that was stopped so early has no good answer to protect, and its time is over."""


@dataclass(frozen=True)
class Proof:
    """An assignment and how far it can be from the optimum.

    Attributes:
        partner: column of every row, `Workspace.indifferent` ones among them.
        deficit: cost minus the dual bound, in grid steps; 0 proves the optimum. None = no bound is known.
        ties: rows that had a choice between optimal assignments.
        stopped: why the search ended early, or None.
    """

    partner: Int32
    deficit: int | None
    ties: int
    stopped: str | None


def prove(lazy: LazyAssignment, verify: bool) -> Proof:
    """Duals of a solved problem, the canonical optimum, and its deficit."""
    with lazy.timed("duals"):
        dual = exact_duals(lazy)
        partner, ties = choose(lazy, dual)
    if verify:
        with lazy.timed("verification"):
            proven = verified(lazy, dual)
        violated = int((proven < dual).sum())
        if violated:
            logger.warning("dual feasibility fails in %d rows: the bound is lowered accordingly", violated)
        dual = proven
    return Proof(partner, total_cost(lazy, partner) - dual_bound(lazy, dual), ties, None)


def exact_duals(lazy: LazyAssignment) -> Int64:
    """Row duals, with lists long enough that nothing outside them is tight."""
    dual, short = np.empty(lazy.n, np.int64), np.zeros(lazy.n, np.bool_)

    def all_duals(low: int, high: int) -> None:
        counters = np.zeros(COUNTERS, np.int64)
        row_duals(low, high, dual, short, lazy.costs, lazy.prices, lazy.lists, lazy.held, counters)

    split(lazy.similarity.threads, lazy.n, all_duals)
    rows = np.flatnonzero(short)
    while len(rows):
        own = np.array([_own_value(lazy, int(i)) for i in rows], np.int64)
        lazy.lengthen(rows, own)
        for i in rows.tolist():
            row_duals(i, i + 1, dual, short, lazy.costs, lazy.prices, lazy.lists, lazy.held, lazy.counters)
        rows = rows[short[rows]]
    return dual


def _own_value(lazy: LazyAssignment, i: int) -> int:
    j = int(lazy.held.partner[i])
    return int(exact_cost(lazy.costs, i, j) - lazy.prices.price[j])


def choose(lazy: LazyAssignment, dual: Int64) -> tuple[Int32, int]:
    """The canonical one of all optimal assignments, and the number of rows that had a choice."""
    partner = whole_assignment(lazy)
    empty = np.empty(0, np.int32)
    count = tight_pairs(dual, empty, empty, lazy.prices, lazy.lists, lazy.held)
    if count > MOST_TIES:
        logger.warning("%d pairs are tied: the permutation is one of many optimal ones, chosen by the search", count)
        return partner, len(partner)
    rows, columns = np.empty(count, np.int32), np.empty(count, np.int32)
    tight_pairs(dual, rows, columns, lazy.prices, lazy.lists, lazy.held)
    at_ceiling = lazy.prices.price == lazy.prices.price.max()
    rows = lazy.places[rows].astype(np.int32)
    if not len(lazy.alike):
        return canonical(partner, TightPairs(rows, columns, at_ceiling, lazy.indifferent))
    out = columns >= lazy.m
    eligible_rows = np.concatenate([rows[out], lazy.places[lazy.held.partner >= lazy.m]])
    tight = TightPairs(rows[~out], columns[~out], at_ceiling[: lazy.m], lazy.indifferent, lazy.alike, eligible_rows)
    return canonical(partner, tight)


def whole_assignment(lazy: LazyAssignment) -> Int32:
    """The assignment in hand with rows that stay out in columns that are alike, and indifferent rows in what is left.

    There are as many alike columns as rows that stay out: the caller has made sure.
    """
    partner = np.empty(lazy.n + len(lazy.indifferent), np.int32)
    own = lazy.held.partner.copy()
    if len(lazy.alike):
        out = np.flatnonzero(own >= lazy.m)
        own[out] = lazy.alike[: len(out)]
    partner[lazy.places] = own
    if len(lazy.indifferent):
        partner[lazy.indifferent] = np.setdiff1d(np.arange(lazy.m), own)[: len(lazy.indifferent)]
    return partner


def verified(lazy: LazyAssignment, dual: Int64) -> Int64:
    """min over every column of cost - price, where that is below the dual; every pair is looked at."""
    proven = dual.copy()
    for block in lazy.similarity.blocks():
        split(lazy.similarity.threads, len(block), _checker(lazy, block, dual, proven))
    return proven


def _checker(lazy: LazyAssignment, rows: Int64, dual: Int64, proven: Int64) -> Callable[[int, int], None]:
    """Work on a range of `rows` for one thread."""
    quantised, scale, local = lazy.similarity.get(rows)

    def check(low: int, high: int) -> None:
        chosen, counters = np.empty(lazy.m, np.int32), np.zeros(COUNTERS, np.int64)
        feasible_duals(
            rows[low:high], local[low:high], quantised, scale, dual, proven, chosen, lazy.costs, lazy.prices, counters
        )

    return check


def total_cost(lazy: LazyAssignment, partner: Int32) -> int:
    """Cost of an assignment in grid steps, without the rows' own norms and the indifferent rows."""
    return sum(row_costs(lazy, partner))


def row_costs(lazy: LazyAssignment, partner: Int32) -> list[int]:
    """Cost of every row in its column in grid steps, without the row's own norm; not of the indifferent rows."""
    own = partner[lazy.places]
    own = np.where(np.isin(own, lazy.alike), lazy.m + np.arange(lazy.n), own)
    return [int(exact_cost(lazy.costs, i, int(j))) for i, j in enumerate(own)]


def dual_bound(lazy: LazyAssignment, dual: Int64) -> int:
    """Sum of the duals: no assignment costs less, whatever the prices, if the row duals are feasible."""
    rows, columns = sum(dual.tolist()), sum(lazy.prices.price.tolist())
    # A spare row costs nothing anywhere: its dual is minus the highest price.
    return rows + columns - lazy.spares * int(lazy.prices.price.max())


def complete(lazy: LazyAssignment, stopped: Stopped) -> Proof:
    """A complete assignment from an interrupted search, with the bound that the prices reached give."""
    with lazy.timed("completion"):
        _match_the_rest(lazy)
    partner = whole_assignment(lazy)
    if bool((lazy.lists.bound == -INFINITE).any()):
        return Proof(partner, None, 0, str(stopped))
    dual, short = np.empty(lazy.n, np.int64), np.zeros(lazy.n, np.bool_)
    row_duals(0, lazy.n, dual, short, lazy.costs, lazy.prices, lazy.lists, lazy.held, lazy.counters)
    return Proof(partner, total_cost(lazy, partner) - dual_bound(lazy, dual), 0, str(stopped))


def _match_the_rest(lazy: LazyAssignment) -> None:
    """Give every free row a column: blocks of free rows against as many free columns, by assignment."""
    free = np.flatnonzero(lazy.held.partner < 0)
    size = COMPLETION_BLOCK if 2 * len(free) <= lazy.n else HASTY_BLOCK
    for block in np.array_split(free, -(-len(free) // size)) if len(free) else []:
        left = np.flatnonzero(lazy.held.owner[: lazy.m] < 0)[: len(block)]
        # Where rows may stay out, those for whom no column is left take their private ones.
        for i in block[len(left) :]:
            _assign(lazy, int(i), lazy.m + int(i))
        rows = block[: len(left)]
        own, chosen = linear_sum_assignment(_distances(lazy.costs, rows, left))
        for i, j in zip(rows[own], left[chosen], strict=True):
            _assign(lazy, int(i), int(j))


def _distances(costs: Costs, rows: Int64, columns: Int64) -> Float64:
    """Squared distances of some rows and columns; where inner products are given, without the norms."""
    if len(costs.given):
        return -2.0 * costs.left[np.ix_(costs.given[rows], columns)].astype(np.float64)
    a, b = (torch.from_numpy(side).to(torch.float64) for side in (costs.left[rows], costs.right[columns]))
    squared: Float64 = torch.cdist(a, b).square().numpy()
    return squared


def _assign(lazy: LazyAssignment, i: int, j: int) -> None:
    lazy.held.owner[j], lazy.held.partner[i] = i, j
