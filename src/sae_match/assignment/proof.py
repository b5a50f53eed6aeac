"""From a finished or interrupted search to an answer: duals, ties, feasibility over all pairs, and completion."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.optimize import linear_sum_assignment

from sae_match.assignment.arrays import (
    INFINITE,
    Bool,
    Costs,
    Float32,
    Float64,
    Int16,
    Int32,
    Int64,
    Prices,
    Real,
)
from sae_match.assignment.compiled import njit
from sae_match.assignment.lazy import LazyAssignment
from sae_match.assignment.list_kernels import (
    CHUNK,
    FAST,
    QUANTIZATION,
    SCAN_SLACK,
    exact_cost,
    exact_costs,
    index,
    lower_cost,
    scan_minimum,
)
from sae_match.assignment.rows import split
from sae_match.assignment.ties import TightPairs, canonical
from sae_match.assignment.workspace import Stopped

logger = logging.getLogger(__name__)

MOST_TIES = 20_000_000
"""Tight pairs that are stored to choose among equal optima."""
BLOCK_ROWS = 512
"""Rows whose lists are looked at together."""
COMPLETION_BLOCK, HASTY_BLOCK = 512, 128
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
        dual: [n] feasible row duals at the search's prices, in grid steps; None where none are known.
    """

    partner: Int32
    deficit: int | None
    ties: int
    stopped: str | None
    dual: Int64 | None = None


@dataclass(frozen=True)
class Attempt:
    """The solution of one problem, and what the costs of other assignments are in it.

    Attributes:
        proof: its solution.
        lazy: the search that led to it.
        costs_of: cost of every row in its column, in the units of the proof's deficit.
    """

    proof: Proof
    lazy: LazyAssignment
    costs_of: Callable[[Int32], list[int]]

    @property
    def n_pairs(self) -> int:
        """Rows that have a column of the other SAE."""
        return int((self.proof.partner < self.lazy.m).sum())

    def deficit_of(self, partner: Int32) -> int | None:
        """Cost of an assignment less the bound; None = no bound is known."""
        if self.proof.deficit is None:
            return None
        return self.proof.deficit + sum(self.costs_of(partner)) - sum(self.costs_of(self.proof.partner))


def search(lazy: LazyAssignment, verify: bool = True) -> Proof:
    """Run to the proof, or to a complete assignment where a limit is met."""
    stopped = lazy.run()
    return proved(lazy, verify) if stopped is None else complete(lazy, stopped)


def proved(lazy: LazyAssignment, verify: bool = True) -> Proof:
    """The proof of a solved problem; where a limit falls into it, the answer stands with the bound that is known."""
    try:
        return prove(lazy, verify)
    except Stopped as late:
        return complete(lazy, late)


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
    return Proof(partner, sum(row_costs(lazy, partner)) - dual_bound(lazy, dual), ties, None, dual)


def list_duals(lazy: LazyAssignment) -> tuple[Int64, Bool]:
    """Feasible row duals, and whether each may be too low because its list is short."""
    dual, short = np.empty(lazy.n, np.int64), np.zeros(lazy.n, np.bool_)
    rows = lazy.first_of_class(np.arange(lazy.n))
    split(lazy.similarity.threads, len(rows), lambda low, high: row_duals(lazy, rows[low:high], dual, short))
    return dual[lazy.classes], short[lazy.classes]


def row_duals(lazy: LazyAssignment, rows: Int64, dual: Int64, short: Bool) -> None:
    """dual_i = min over all columns of cost - price, from the lists of `rows`, each of another class.

    `short` marks a row whose own column is not provably better than everything outside its list; its dual is then
    the bound, which is valid but may be too low.
    """
    lists, price = lazy.lists, lazy.prices.price
    for first in range(0, len(rows), BLOCK_ROWS):
        part = rows[first : first + BLOCK_ROWS]
        partner = lazy.held.partner[part]
        least = np.full(len(part), INFINITE)
        least[partner >= 0] = costs_of(lazy, part[partner >= 0], partner[partner >= 0]) - price[partner[partner >= 0]]
        of, slots = listed_pairs(lazy, part)
        columns = lists.column[slots]
        # An inexact entry is a lower bound: only one that reaches down to the row's own value matters.
        close = lists.cost[slots] - price[columns] <= least[of]
        of, slots, columns = of[close], slots[close], columns[close]
        inexact = ~lists.exact[slots]
        lists.cost[slots[inexact]] = costs_of(lazy, part[of[inexact]], columns[inexact])
        lists.exact[slots] = True
        np.minimum.at(least, of, lists.cost[slots] - price[columns])
        short[part] = lists.bound[part] <= least
        dual[part] = np.minimum(least, lists.bound[part])


def listed_pairs(lazy: LazyAssignment, rows: Int64) -> tuple[Int64, Int64]:
    """Entries of the lists of `rows`: which row each belongs to, by its place in `rows`, and its slot."""
    length = lazy.lists.length[rows]
    of = np.repeat(np.arange(len(rows)), length)
    return of, np.arange(len(of)) + (lazy.lists.start[rows] - np.cumsum(length) + length)[of]


def exact_duals(lazy: LazyAssignment) -> Int64:
    """Row duals, with lists long enough that nothing outside them is tight."""
    dual, short = list_duals(lazy)
    rows = lazy.first_of_class(np.flatnonzero(short))
    while len(rows):
        columns = lazy.held.partner[rows]
        lazy.lengthen(rows, costs_of(lazy, rows, columns) - lazy.prices.price[columns])
        row_duals(lazy, rows, dual, short)
        rows = rows[short[rows]]
    return dual[lazy.classes]


def choose(lazy: LazyAssignment, dual: Int64) -> tuple[Int32, int]:
    """The canonical one of all optimal assignments, and the number of rows that had a choice."""
    partner = whole_assignment(lazy)
    found = tight_pairs(lazy, dual)
    if found is None:
        logger.warning(
            "more than %d pairs are tied: the permutation is one of many optimal ones, chosen by the search", MOST_TIES
        )
        return partner, len(partner)
    rows, columns = found
    at_ceiling = lazy.prices.price == lazy.prices.price.max()
    rows = lazy.places[rows].astype(np.int32)
    if not len(lazy.alike):
        like = np.arange(len(partner), dtype=np.int32)
        like[lazy.places] = lazy.places[lazy.classes]
        return canonical(partner, TightPairs(rows, columns, at_ceiling, lazy.indifferent, like=like))
    out = columns >= lazy.m
    eligible_rows = np.concatenate([rows[out], lazy.places[lazy.held.partner >= lazy.m]])
    tight = TightPairs(rows[~out], columns[~out], at_ceiling[: lazy.m], lazy.indifferent, lazy.alike, eligible_rows)
    return canonical(partner, tight)


def tight_pairs(lazy: LazyAssignment, dual: Int64) -> tuple[Int32, Int32] | None:
    """Pairs outside the assignment that cost no more than their duals allow; None where they are too many.

    Of rows that share a list, those of the row under which it is kept.
    """
    lists, rows, columns = lazy.lists, [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    for first in range(0, lazy.n, BLOCK_ROWS):
        part = lazy.first_of_class(np.arange(first, min(lazy.n, first + BLOCK_ROWS)))
        of, slots = listed_pairs(lazy, part)
        i, j = part[of], lists.column[slots]
        tight = lists.exact[slots] & (lists.cost[slots] - lazy.prices.price[j] == dual[i]) & (lazy.held.partner[i] != j)
        rows.append(i[tight].astype(np.int32))
        columns.append(j[tight])
        if sum(map(len, rows)) > MOST_TIES:
            return None
    return np.concatenate(rows), np.concatenate(columns)


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
    if len(lazy.costs.private_cost):
        np.minimum(proven, lazy.costs.private_cost - lazy.prices.price[lazy.m :], out=proven)
    for block in lazy.similarity.blocks():
        rows = lazy.first_of_class(block)
        check = partial(_verify, lazy, rows, lazy.similarity.get(rows), dual, proven)
        split(lazy.similarity.threads, len(rows), check)
    return np.minimum(proven, proven[lazy.classes])


def _verify(
    lazy: LazyAssignment, rows: Int64, source: tuple[Int16, Float32, Int64], dual: Int64, proven: Int64,
    low: int, high: int,
) -> None:  # fmt: skip
    """`verified` of rows[low:high]."""
    found, most = None, len(rows) + 1
    while found is None:
        found = pairs_within(lazy, rows[low:high], (*source[:2], source[2][low:high]), dual, -1, most)
        most *= 8
    np.minimum.at(proven, found[0], costs_of(lazy, *found) - lazy.prices.price[found[1]])


def pairs_within(
    lazy: LazyAssignment, rows: Int64, source: tuple[Int16, Float32, Int64], dual: Int64, slack: int, most: int
) -> tuple[Int64, Int64] | None:
    """Pairs of some rows whose cost - price exceeds the dual by at most `slack`; None where there are `most` or more.

    Args:
        source: the quantized rows, as `QuantizedRows.get` returns them.
    """
    out, chosen = np.empty((2, most), np.int32), np.empty(lazy.m, np.int32)
    quantized, scale, local = source
    count = near_pairs(rows, local, quantized, scale, dual, slack, out, chosen, lazy.costs, lazy.prices)
    if count == most:
        return None
    return out[0, :count].astype(np.int64), out[1, :count].astype(np.int64)


def row_costs(lazy: LazyAssignment, partner: Int32) -> list[int]:
    """Cost of every row in its column in grid steps, without the row's own norm; not of the indifferent rows."""
    own = partner[lazy.places]
    own = np.where(np.isin(own, lazy.alike), lazy.m + np.arange(lazy.n), own)
    costs: list[int] = costs_of(lazy, np.arange(lazy.n), own).tolist()
    return costs


def costs_of(lazy: LazyAssignment, rows: Int64, columns: Int32 | Int64) -> Int64:
    """Exact costs of pairs in grid steps."""
    out = np.empty(len(rows), np.int64)
    exact_costs(rows, columns.astype(np.int64), lazy.costs, out)
    return out


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
    if not lazy.listed():
        return Proof(partner, None, 0, str(stopped))
    dual, _ = list_duals(lazy)
    return Proof(partner, sum(row_costs(lazy, partner)) - dual_bound(lazy, dual), 0, str(stopped), dual)


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
    a, b = (side.astype(np.float64) for side in (costs.left[rows], costs.right[columns]))
    squared: Float64 = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2.0 * (a @ b.T)
    return squared


def _assign(lazy: LazyAssignment, i: int, j: int) -> None:
    lazy.held.owner[j], lazy.held.partner[i] = i, j


@njit(cache=True, nogil=True, fastmath=FAST)
def scan_below(
    row: Int16, offset: Float32, norm: Float32, twice: Real, beta: Real, threshold: Real, chosen: Int32
) -> int:
    """Columns whose float32 lower bound of cost - price is below `threshold`; returns their number."""
    count, m = 0, row.shape[0]
    for low in range(0, m, CHUNK):
        high = min(m, low + CHUNK)
        if scan_minimum(row, offset, norm, twice, beta, low, high) > threshold:
            continue
        for j in range(low, high):
            if -twice * np.float32(row[j]) - offset[j] - beta * norm[j] <= threshold:
                chosen[count] = j
                count += 1
    return count


@njit(cache=True, nogil=True)
def near_pairs(
    rows: Int64, local: Int64, quantized: Int16, scale: Float32, dual: Int64, slack: int, out: Int32, chosen: Int32,
    costs: Costs, prices: Prices,
) -> int:  # fmt: skip
    """Pairs whose cost - price exceeds the dual by at most `slack`, as rows and columns in out[0] and out[1].

    Returns their number; it stops where `out` is full. The float32 filter sees every pair; one that it cannot clear is
    priced exactly.
    """
    count = 0
    for r in range(rows.shape[0]):
        i, at = rows[r], local[r]
        s = scale[at]
        beta, twice = np.float32(2.0 * costs.gamma * costs.left_norm[i]), np.float32(2) * s
        limit = dual[i] + slack
        level = limit / costs.unit
        error = QUANTIZATION * s + SCAN_SLACK * (2.0 * 32767.0 * s + abs(level)) + 4.0 / costs.unit
        threshold = np.float32(level + 2.0 * error)
        for c in range(scan_below(quantized[at], prices.offset, costs.right_norm, twice, beta, threshold, chosen)):
            j = index(chosen[c])
            if lower_cost(costs, i, j, s, quantized[at][j]) - prices.price[j] > limit:
                continue
            if exact_cost(costs, i, j) - prices.price[j] <= limit:
                if count == out.shape[1]:
                    return count
                out[0, count], out[1, count] = i, j
                count += 1
    return count
