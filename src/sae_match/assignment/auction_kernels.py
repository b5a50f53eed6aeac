"""Compiled kernels of the auction: rows bid for columns, prices fall, and the prices end near the optimal duals.

Bertsekas' auction with epsilon scaling, in the sign convention of shortest augmenting paths: a row takes the column
with the least cost - price, and lowers that price until the column is no better than the row's second choice.
"""

from __future__ import annotations

import numpy as np

from sae_match.assignment.arrays import (
    INFINITE,
    SPARE,
    UNOWNED,
    Assignment,
    Costs,
    Float32,
    Int16,
    Int32,
    Int64,
    Lists,
    Prices,
    Scratch,
)
from sae_match.assignment.compiled import inner, njit
from sae_match.assignment.list_kernels import (
    BIDS,
    DEFERRED,
    EXACT,
    PENDING,
    QUEUE,
    REMADE,
    SPARES_LOST,
    exact_cost,
    index,
    renew,
)

DOUBTS = 8
"""Costs that a bid makes exact one after another, each after a look at the whole list."""


@inner
def two_best(i: int, costs: Costs, prices: Prices, lists: Lists, counters: Int64) -> tuple[int, int, int, int]:
    """Slots and values of row i's best and second best listed columns, made exact where they lie below the bound."""
    i = index(lists.of[i])
    first = lists.start[i]
    for _ in range(DOUBTS):
        best, second, best_at, second_at = INFINITE, INFINITE, -1, -1
        for t in range(first, first + lists.length[i]):
            value = lists.cost[t] - prices.price[lists.column[t]]
            if value < best:
                second, second_at = best, best_at
                best, best_at = value, t
            elif value < second:
                second, second_at = value, t
        # Only what could decide the bid is computed exactly, and once: the list remembers it.
        doubtful = -1
        if best_at >= 0 and best < lists.bound[i] and not lists.exact[best_at]:
            doubtful = best_at
        elif second_at >= 0 and second < lists.bound[i] and not lists.exact[second_at]:
            doubtful = second_at
        if doubtful < 0:
            return best_at, best, second_at, second
        lists.cost[doubtful] = exact_cost(costs, i, index(lists.column[doubtful]))
        lists.exact[doubtful] = True
        counters[EXACT] += 1
    # Many columns are almost as good: one pass over the list computes a few costs more than are needed.
    best, second, best_at, second_at = INFINITE, INFINITE, -1, -1
    for t in range(first, first + lists.length[i]):
        j = index(lists.column[t])
        value = lists.cost[t] - prices.price[j]
        if value < second and value < lists.bound[i] and not lists.exact[t]:
            lists.cost[t], lists.exact[t] = exact_cost(costs, i, j), True
            counters[EXACT] += 1
            value = lists.cost[t] - prices.price[j]
        if value < best:
            second, second_at = best, best_at
            best, best_at = value, t
        elif value < second:
            second, second_at = value, t
    return best_at, best, second_at, second


@inner
def set_price(j: int, price: int, costs: Costs, prices: Prices) -> None:
    """Lower a column's price, in both forms."""
    prices.price[j] = price
    if j < prices.offset.shape[0]:
        prices.offset[j] = np.float32((price - costs.column_cost[j]) / costs.unit)


@inner
def stale(
    i: int, best: int, counters: Int64, few: int, quantized: Int16, scale: Float32,
    costs: Costs, prices: Prices, lists: Lists, scratch: Scratch,
) -> bool:  # fmt: skip
    """Remake an exhausted list here and now, where that is possible and cheaper than waiting for a batch."""
    if quantized.shape[0] == 0 or counters[QUEUE] > few:
        return False
    counters[REMADE] += 1
    # Prices that did not move since the list was made leave it as it was: only a longer one helps.
    r = index(lists.of[i])
    above = min(lists.bound[r], best)
    return renew(r, quantized[r], scale[r], lists.wanted[r], above, costs, prices, lists, scratch)


@njit(cache=True, nogil=True)
def auction(
    epsilon: int, most_bids: int, few: int, queue: Int32, head: int, pending: Int32, counters: Int64,
    quantized: Int16, scale: Float32, costs: Costs, prices: Prices, lists: Lists, held: Assignment, scratch: Scratch,
) -> int:  # fmt: skip
    """Bids, first come first served, until the queue is empty, `pending` is full or `most_bids` are made.

    `queue` is a ring that begins at `head`; returns the new head. Rows whose lists are exhausted go to `pending`.
    """
    ring = queue.shape[0]
    # A row whose list is exhausted makes no bid, but work.
    stop = counters[BIDS] + counters[PENDING] + most_bids
    while counters[QUEUE] > 0 and counters[PENDING] < pending.shape[0] and counters[BIDS] + counters[PENDING] < stop:
        i = index(queue[head])
        head = (head + 1) % ring
        counters[QUEUE] -= 1
        r = index(lists.of[i])
        while True:
            best_at, best, _, second = two_best(i, costs, prices, lists, counters)
            if best < lists.bound[r]:
                break
            if not stale(i, best, counters, few, quantized, scale, costs, prices, lists, scratch):
                break
        if best >= lists.bound[r]:
            pending[counters[PENDING]] = i
            counters[PENDING] += 1
            continue
        counters[BIDS] += 1
        # What lies outside the list is no better than its bound, so the bound can stand in for the second choice.
        second = min(second, lists.bound[r])
        j = index(lists.column[best_at])
        drop = epsilon if second == INFINITE else second - best + epsilon
        set_price(j, prices.price[j] - drop, costs, prices)
        loser = index(held.owner[j])
        held.owner[j], held.partner[i] = i, j
        if loser >= 0:
            held.partner[loser] = UNOWNED
            queue[(head + counters[QUEUE]) % ring] = loser
            counters[QUEUE] += 1
        elif loser == SPARE:
            counters[SPARES_LOST] += 1
    return head


@njit(cache=True, nogil=True)
def release(epsilon: int, queue: Int32, lists: Lists, prices: Prices, held: Assignment) -> int:
    """Free every row whose column is more than `epsilon` above its best choice; returns the number of free rows."""
    free = 0
    for i in range(held.partner.shape[0]):
        j, r = held.partner[i], lists.of[i]
        if j >= 0:
            own, best = INFINITE, lists.bound[r]
            for t in range(lists.start[r], lists.start[r] + lists.length[r]):
                value = lists.cost[t] - prices.price[lists.column[t]]
                if lists.column[t] == j and lists.exact[t]:
                    own = value
                best = min(best, value)
            if own == INFINITE or own > best + epsilon:
                held.owner[j], held.partner[i] = UNOWNED, UNOWNED
        if held.partner[i] < 0:
            queue[free] = i
            free += 1
    return free


@njit(cache=True, nogil=True)
def reduce_rows(
    most_bids: int, most_visits: int, queue: Int32, deferred: Int32, pending: Int32, visits: Int32, counters: Int64,
    costs: Costs, prices: Prices, lists: Lists, held: Assignment,
) -> None:  # fmt: skip
    """Jonker and Volgenant's augmenting row reduction: bids without epsilon, so every held column stays tight.

    It goes on until `queue` is empty, `pending` is full or `most_bids` are made.

    `queue` is a stack. A row that loses its column without a fall in price, or that has had its visits, goes to
    `deferred`; one whose list is exhausted goes to `pending`.
    """
    stop = counters[BIDS] + counters[PENDING] + most_bids
    while counters[QUEUE] > 0 and counters[PENDING] < pending.shape[0]:
        counters[QUEUE] -= 1
        i = index(queue[counters[QUEUE]])
        while i >= 0:
            if counters[BIDS] + counters[PENDING] >= stop:
                queue[counters[QUEUE]] = i
                counters[QUEUE] += 1
                return
            visits[i] += 1
            if visits[i] > most_visits:
                deferred[counters[DEFERRED]] = i
                counters[DEFERRED] += 1
                break
            best_at, best, second_at, second = two_best(i, costs, prices, lists, counters)
            if best >= lists.bound[lists.of[i]]:
                pending[counters[PENDING]] = i
                counters[PENDING] += 1
                break
            i = take(i, best_at, best, second_at, second, deferred, counters, costs, prices, lists, held)


@inner
def take(
    i: int, best_at: int, best: int, second_at: int, second: int, deferred: Int32, counters: Int64,
    costs: Costs, prices: Prices, lists: Lists, held: Assignment,
) -> int:  # fmt: skip
    """Give row i its best column at a price that leaves it indifferent; returns the row to go on with, or -1."""
    r = lists.of[i]
    limit = min(second, lists.bound[r])
    j = index(lists.column[best_at])
    counters[BIDS] += 1
    if best < limit:
        if limit < INFINITE:
            set_price(j, prices.price[j] - (limit - best), costs, prices)
    elif held.owner[j] != UNOWNED and second_at >= 0 and second == best:
        j = index(lists.column[second_at])
        if held.owner[j] != UNOWNED:  # where many columns tie, one that is free ends the row's search
            for t in range(lists.start[r], lists.start[r] + lists.length[r]):
                k = index(lists.column[t])
                if lists.exact[t] and lists.cost[t] - prices.price[k] == best and held.owner[k] == UNOWNED:
                    j = k
                    break
    loser = index(held.owner[j])
    held.owner[j], held.partner[i] = i, j
    if loser == SPARE:
        counters[SPARES_LOST] += 1
    if loser < 0:
        return -1
    held.partner[loser] = UNOWNED
    if best < limit:
        return loser
    deferred[counters[DEFERRED]] = loser
    counters[DEFERRED] += 1
    return -1
