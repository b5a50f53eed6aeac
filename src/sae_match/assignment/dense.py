"""Compiled kernels for a matrix of costs in memory: Jonker and Volgenant's method on float64, without lists or grids.

Columns have prices v; a row's best column is the one with the least cost - v. Every column that a row holds stays its
best, so v proves the optimum: with u_i = min_j (cost_ij - v_j), no assignment costs less than sum u + sum v.
"""

from __future__ import annotations

import time

import numpy as np

from sae_match.assignment.arrays import UNOWNED, Float64, Int64
from sae_match.assignment.compiled import njit

VISITS = 4
"""Rows looked at in one pass of the row reduction, per row: price wars are left to the shortest paths."""
PASSES = 2
"""Passes of the row reduction."""
MOST_STEPS = 1 << 28
"""Steps of shortest paths between two looks at the clock, at most."""


class InfeasibleError(Exception):
    """Every complete assignment has a pair of infinite cost."""


def solve_dense(cost: Float64, deadline: float | None = None) -> tuple[Int64, Float64, bool]:
    """The least sum of costs, in O(n^2 m) and most often far less; sums of whole numbers below 2^53 are exact.

    Args:
        cost: [n, m], n <= m, C-contiguous; infinity = the pair is forbidden, no other value that is not finite.
        deadline: time.monotonic() at which the rows that are left get any column that may have them; None = never.

    Returns:
        [n] column of every row; [m] prices, at most 0 where n < m and 0 for the columns left over; whether it ended
        before the optimum.

    Raises:
        InfeasibleError: there is no complete assignment.
    """
    n, m = cost.shape
    price, owner, partner = np.zeros(m), np.full(m, UNOWNED), np.full(n, UNOWNED)
    if n == m:
        price = cost.min(axis=0)
        price[~np.isfinite(price)] = 0.0
    reduce_rows(cost, price, owner, partner)
    free = np.flatnonzero(partner == UNOWNED)
    step = max(1, MOST_STEPS // (n * m))
    while len(free):
        if deadline is not None and time.monotonic() > deadline:
            # Paths of any cost: no row that has a column loses it without getting another one.
            if not complete_rows(free, cost, owner, partner):
                raise InfeasibleError
            return partner, price, True
        if not augment_rows(free[:step], cost, price, owner, partner):
            raise InfeasibleError
        free = free[step:]
    return partner, price, False


@njit(cache=True, nogil=True)
def hand_over(source: int, end: int, before: Int64, owner: Int64, partner: Int64) -> None:
    """Give every row of the path that ends at a free column, back to its source, the column after it."""
    while True:
        i = before[end]
        owner[end] = i
        partner[i], end = end, partner[i]
        if i == source:
            break


@njit(cache=True, nogil=True)
def reduce_rows(cost: Float64, price: Float64, owner: Int64, partner: Int64) -> None:
    """Give free rows their best columns, at prices that leave them indifferent to the second best."""
    n, m = cost.shape
    free, count = np.arange(n), n
    for _ in range(PASSES):
        waiting, count, k, left = count, 0, 0, VISITS * n
        while k < waiting:
            i = free[k]
            k += 1
            left -= 1
            if left < 0:
                free[count] = i
                count += 1
                continue
            best, second, best_at, second_at = np.inf, np.inf, -1, -1
            for j in range(m):
                value = cost[i, j] - price[j]
                # Of columns that tie for the best, one that is free ends the row's search.
                if value < second or (value == best and owner[j] < 0):
                    if value < best:
                        second, second_at = best, best_at
                        best, best_at = value, j
                    else:
                        second, second_at = value, j
            j = best_at
            if j < 0:
                free[count] = i
                count += 1
                continue
            lowered = price[j] - (second - best) if second < np.inf else price[j]
            falls = lowered < price[j]
            if not falls and owner[j] >= 0:
                if second_at < 0 or second > best or owner[second_at] >= 0:
                    free[count] = i
                    count += 1
                    continue
                j = second_at
            if falls:
                price[j] = lowered
            loser = owner[j]
            owner[j], partner[i] = i, j
            if loser >= 0:
                partner[loser] = -1
                k -= 1
                free[k] = loser


@njit(cache=True, nogil=True)
def augment_rows(  # noqa: PLR0912  one loop: splitting it would hide the order of events
    rows: Int64, cost: Float64, price: Float64, owner: Int64, partner: Int64
) -> bool:
    """A shortest augmenting path for each of the rows; False where one has none."""
    m = cost.shape[1]
    distance, before, order = np.empty(m), np.empty(m, np.int64), np.arange(m).astype(np.uint32)
    for source in rows:
        # order[:done] have final labels and were scanned, order[done:near] are at the least label of the others.
        done, near, settled, end, least = 0, 0, 0, -1, 0.0
        for j in range(m):
            distance[j], before[j] = cost[source, j] - price[j], source
        while end < 0:
            if done == near:
                settled, least = near, np.inf
                for k in range(near, m):
                    j = order[k]
                    if distance[j] <= least:
                        if distance[j] < least:
                            near, least = settled, distance[j]
                        order[k], order[near] = order[near], j
                        near += 1
                if least == np.inf:
                    return False
                for k in range(settled, near):
                    if owner[order[k]] < 0:
                        end = np.int64(order[k])  # type: ignore[assignment]
                        break
                if end >= 0:
                    break
            j = order[done]
            done += 1
            i = owner[j]
            row = cost[i]
            offset = row[j] - price[j] - least
            for k in range(near, m):
                j = order[k]
                label = row[j] - price[j] - offset
                if label < distance[j]:
                    distance[j], before[j] = label, i
                    if label <= least:
                        if owner[j] < 0:
                            end = np.int64(j)  # type: ignore[assignment]
                            break
                        order[k], order[near] = order[near], j
                        near += 1
        for k in range(settled):
            price[order[k]] += distance[order[k]] - least
        hand_over(source, end, before, owner, partner)
    return True


@njit(cache=True, nogil=True)
def complete_rows(rows: Int64, cost: Float64, owner: Int64, partner: Int64) -> bool:
    """Any column that may have it for each of the rows, by paths of finite costs; False where one has none."""
    m = cost.shape[1]
    before, queue = np.empty(m, np.int64), np.empty(m + 1, np.int64)
    for source in rows:
        before[:] = -1
        queue[0] = source
        head, tail, end = 0, 1, -1
        while head < tail and end < 0:
            i = queue[head]
            head += 1
            for j in range(m):
                if before[j] < 0 and cost[i, j] < np.inf:
                    before[j] = i
                    if owner[j] < 0:
                        end = j
                        break
                    queue[tail] = owner[j]
                    tail += 1
        if end < 0:
            return False
        hand_over(source, end, before, owner, partner)
    return True
