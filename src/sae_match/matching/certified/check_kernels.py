"""Compiled kernels of the proof: row duals from the lists, and dual feasibility over every pair."""

from __future__ import annotations

import numpy as np

from sae_match.matching.certified.arrays import (
    INFINITE,
    Assignment,
    Bool,
    Costs,
    Float32,
    Int16,
    Int32,
    Int64,
    Lists,
    Prices,
    Real,
)
from sae_match.matching.certified.auction_kernels import EXACT
from sae_match.matching.certified.list_kernels import (
    FAST,
    QUANTISATION,
    SCAN_SLACK,
    exact_cost,
    lower_cost,
    scan_minimum,
)
from sae_match.matching.certified.path_kernels import certain_cost
from sae_match.matching.compiled import njit

CHUNK = 64


@njit(cache=True, nogil=True)
def row_duals(
    low: int, high: int, dual: Int64, short: Bool, costs: Costs, prices: Prices, lists: Lists, held: Assignment,
    counters: Int64,
) -> None:  # fmt: skip
    """dual_i = min over all columns of cost - price, from the lists of rows low..high-1.

    `short` marks a row whose own column is not provably better than everything outside its list; its dual is then
    the bound, which is valid but may be too low.
    """
    for i in range(low, high):
        own = INFINITE
        if held.partner[i] >= 0:
            own = certain_cost(i, held.partner[i], costs, lists, counters) - prices.price[held.partner[i]]
        least = own
        for t in range(lists.start[i], lists.start[i] + lists.length[i]):
            j = lists.column[t]
            # An inexact entry is a lower bound: only one that reaches down to the row's own value matters.
            if lists.cost[t] - prices.price[j] <= least and not lists.exact[t]:
                lists.cost[t], lists.exact[t] = exact_cost(costs, i, j), True
                counters[EXACT] += 1
            least = min(least, lists.cost[t] - prices.price[j])
        short[i] = lists.bound[i] <= least
        dual[i] = min(least, lists.bound[i])


@njit(cache=True, nogil=True)
def tight_pairs(dual: Int64, rows: Int32, columns: Int32, prices: Prices, lists: Lists, held: Assignment) -> int:
    """Pairs outside the assignment that cost no more than their duals allow; returns their number, stored or not."""
    count = 0
    for i in range(dual.shape[0]):
        for t in range(lists.start[i], lists.start[i] + lists.length[i]):
            j = lists.column[t]
            if lists.exact[t] and lists.cost[t] - prices.price[j] == dual[i] and held.partner[i] != j:
                if count < rows.shape[0]:
                    rows[count], columns[count] = i, j
                count += 1
    return count


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
def feasible_duals(
    rows: Int64, local: Int64, quantised: Int16, scale: Float32, dual: Int64, proven: Int64, chosen: Int32,
    costs: Costs, prices: Prices, counters: Int64,
) -> None:  # fmt: skip
    """proven_i = min(dual_i, min over every column of cost - price): equal to dual_i if and only if that is feasible.

    The float32 filter sees every pair; a pair that it cannot clear is priced exactly.
    """
    for r in range(rows.shape[0]):
        i, at = rows[r], local[r]
        s = scale[at]
        beta, twice = np.float32(2.0 * costs.gamma * costs.left_norm[i]), np.float32(2) * s
        level = dual[i] / costs.unit
        slack = QUANTISATION * s + SCAN_SLACK * (2.0 * 32767.0 * s + abs(level)) + 4.0 / costs.unit
        threshold = np.float32(level + 2.0 * slack)
        least = dual[i]
        for c in range(scan_below(quantised[at], prices.offset, costs.right_norm, twice, beta, threshold, chosen)):
            j = chosen[c]
            if lower_cost(costs, i, j, s, quantised[at][j]) - prices.price[j] < least:
                least = min(least, exact_cost(costs, i, j) - prices.price[j])
                counters[EXACT] += 1
        if costs.private_cost.shape[0] > 0:
            least = min(least, costs.private_cost[i] - prices.price[quantised.shape[1] + i])
        proven[i] = least


@njit(cache=True, nogil=True)
def near_pairs(
    rows: Int64, local: Int64, quantised: Int16, scale: Float32, dual: Int64, slack: int, out: Int32, chosen: Int32,
    costs: Costs, prices: Prices, counters: Int64,
) -> int:  # fmt: skip
    """Pairs whose cost - price exceeds the dual by at most `slack`, as rows and columns in out[0] and out[1].

    Returns their number; it stops where `out` is full.
    """
    count = 0
    for r in range(rows.shape[0]):
        i, at = rows[r], local[r]
        s = scale[at]
        beta, twice = np.float32(2.0 * costs.gamma * costs.left_norm[i]), np.float32(2) * s
        limit = dual[i] + slack
        level = limit / costs.unit
        error = QUANTISATION * s + SCAN_SLACK * (2.0 * 32767.0 * s + abs(level)) + 4.0 / costs.unit
        threshold = np.float32(level + 2.0 * error)
        for c in range(scan_below(quantised[at], prices.offset, costs.right_norm, twice, beta, threshold, chosen)):
            j = chosen[c]
            if lower_cost(costs, i, j, s, quantised[at][j]) - prices.price[j] > limit:
                continue
            counters[EXACT] += 1
            if exact_cost(costs, i, j) - prices.price[j] <= limit:
                if count == out.shape[1]:
                    return count
                out[0, count], out[1, count] = i, j
                count += 1
    return count
