"""Compiled kernels of the baselines: exact costs, the nearest columns of a row, and the greedy matching."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np

from sae_match.matching.compiled import njit

FREE = -1
"""A row or column without a partner."""
UNRESOLVED = -1
"""In place of a column: the row's next cheapest column lies outside its list."""


@njit(cache=True, nogil=True)
def pair_cost(a: Any, b: Any) -> float:
    """Squared distance of two rows, summed in float64 in one order: equal rows have equal costs on every machine.

    Four sums hide the latency of the additions, which the compiler may not reorder itself.
    """
    s0 = s1 = s2 = s3 = 0.0
    whole = len(a) - len(a) % 4
    for at in range(0, whole, 4):
        d0, d1 = np.float64(a[at]) - b[at], np.float64(a[at + 1]) - b[at + 1]
        d2, d3 = np.float64(a[at + 2]) - b[at + 2], np.float64(a[at + 3]) - b[at + 3]
        s0 += d0 * d0
        s1 += d1 * d1
        s2 += d2 * d2
        s3 += d3 * d3
    for at in range(whole, len(a)):
        d0 = np.float64(a[at]) - b[at]
        s0 += d0 * d0
    return (s0 + s1) + (s2 + s3)


@njit(cache=True, nogil=True)
def smallest(values: Any, length: int, heap_values: Any, heap_at: Any) -> int:
    """The `length` smallest of `values` that are finite, as a heap with the largest of them at 0; returns how many."""
    held = 0
    for at in range(len(values)):
        value = values[at]
        if value == np.inf or (held == length and value >= heap_values[0]):
            continue
        node = 0
        if held < length:
            node = held
            held += 1
            while node > 0 and heap_values[(node - 1) // 2] < value:
                parent = (node - 1) // 2
                heap_values[node], heap_at[node] = heap_values[parent], heap_at[parent]
                node = parent
        else:
            while True:
                child = 2 * node + 1
                if child + 1 < held and heap_values[child + 1] > heap_values[child]:
                    child += 1
                if child >= held or heap_values[child] <= value:
                    break
                heap_values[node], heap_at[node] = heap_values[child], heap_at[child]
                node = child
        heap_values[node], heap_at[node] = value, at
    return held


@njit(cache=True, nogil=True)
def nearest_columns(
    low: int, high: int, products: Any, left: Any, right: Any, left_square: Any, right_square: Any,
    free: Any, error: float, columns: Any, costs: Any, settled: Any, bound: Any,
) -> bool:  # fmt: skip
    """The cheapest free columns of rows low..high of a block, in order of (cost, column).

    A product bounds the cost of its pair from below; the columns with the lowest bounds get their exact cost. Those
    that cost less than the bound of every other column are settled: nothing outside the list comes before them.

    Args:
        products: [rows, m] float32 inner products.
        left, right: [rows, d], [m, d].
        left_square, right_square: squared norms.
        free: [m] columns that count.
        error: relative error that a product may have, in units of the two norms.
        columns, costs: [rows, length] output, filled up with FREE and infinity.
        settled: [rows] output, how many entries are settled.
        bound: [rows] output: every free column that is not settled costs at least this.

    Returns:
        Whether every product was as accurate as it should be.
    """
    m, length = len(right), columns.shape[1]
    # Rounding of the squared norms and of the exact costs themselves.
    rounding = 4.0 * (left.shape[1] + 8) * 2.0**-53
    right_norm = np.sqrt(right_square)
    values, heap_values, heap_at = np.empty(m), np.empty(length), np.empty(length, np.int64)
    accurate = True
    for i in range(low, high):
        per_norm, candidates = 2.0 * error * np.sqrt(left_square[i]), 0
        for j in range(m):
            values[j] = np.inf
            if free[j]:
                square = left_square[i] + right_square[j]
                values[j] = square - 2.0 * products[i, j] - (per_norm * right_norm[j] + rounding * square)
                accurate &= values[j] < np.inf
                candidates += 1
        held = smallest(values, length, heap_values, heap_at)
        bound[i] = heap_values[0] if held < candidates else np.inf
        chosen = np.sort(heap_at[:held])
        exact = np.empty(held)
        for at in range(held):
            j = chosen[at]
            exact[at] = pair_cost(left[i], right[j])
            slack = per_norm * right_norm[j] + rounding * (left_square[i] + right_square[j])
            accurate &= abs(values[j] + slack - exact[at]) <= slack
        order = np.argsort(exact, kind="mergesort")
        columns[i], costs[i], settled[i] = FREE, np.inf, 0
        for at in range(held):
            columns[i, at], costs[i, at] = chosen[order[at]], exact[order[at]]
            settled[i] += costs[i, at] < bound[i]
    return accurate


@njit(cache=True, nogil=True)
def advance(i: int, columns: Any, settled: Any, cursor: Any, owner: Any) -> int:
    """The first free column of row i's list, or UNRESOLVED; moves the row's cursor there."""
    while cursor[i] < settled[i]:
        j = columns[i, cursor[i]]
        if owner[j] == FREE:
            return j
        cursor[i] += 1
    return UNRESOLVED


@njit(cache=True, nogil=True)
def match_greedily(
    wanted: int, columns: Any, costs: Any, settled: Any, bound: Any, cursor: Any, partner: Any, owner: Any
) -> int:
    """Match the cheapest pair of free features, again and again, as far as the lists reach.

    Pairs are ordered by (cost, row, column). Stops where the next pair could lie outside a row's list.

    Returns:
        The number of pairs in all.
    """
    heap = [(0.0, np.int64(0), np.int64(0)) for _ in range(0)]
    matched = 0
    for i in range(len(partner)):
        if partner[i] != FREE:
            matched += 1
            continue
        j = advance(i, columns, settled, cursor, owner)
        if j != UNRESOLVED or bound[i] < np.inf:
            heap.append((bound[i] if j == UNRESOLVED else costs[i, cursor[i]], np.int64(i), np.int64(j)))
    heapify(heap)
    while matched < wanted and len(heap) > 0:
        _, row, column = heappop(heap)
        if column == UNRESOLVED:
            break
        if owner[column] == FREE:
            partner[row], owner[column] = column, row
            matched += 1
            continue
        after = advance(int(row), columns, settled, cursor, owner)
        if after != UNRESOLVED or bound[row] < np.inf:
            key = bound[row] if after == UNRESOLVED else costs[row, cursor[row]]
            heappush(heap, (key, np.int64(row), np.int64(after)))
    return matched


@njit(cache=True, nogil=True)
def free_entries(columns: Any, settled: Any, cursor: Any, owner: Any, left: Any) -> None:
    """How many settled entries of each row's list are still free, into `left`."""
    for i in range(len(left)):
        left[i] = 0
        for at in range(cursor[i], settled[i]):
            left[i] += owner[columns[i, at]] == FREE
