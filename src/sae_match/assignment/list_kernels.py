"""Compiled kernels that price pairs exactly and choose each row's candidate list from quantized inner products."""

from __future__ import annotations

from typing import Any

import numpy as np

from sae_match.assignment.arrays import (
    INFINITE,
    Costs,
    Float32,
    Float64,
    Int16,
    Int32,
    Int64,
    Lists,
    Prices,
    Real,
    Scratch,
)
from sae_match.assignment.compiled import inner, njit
from sae_match.assignment.exact_numbers import remainder, steps_of

FAST = {"nnan", "ninf", "nsz", "reassoc", "contract"}
"""Lets the compiler vectorize a sum or a minimum; the values are finite by construction."""
SCAN_SLACK = 1e-6
"""Relative slack for the float32 arithmetic of a scan: 2^-20 of the largest quantity that enters it."""
QUANTIZATION = 1.01
"""Error of a cost from quantization, in steps of the row: twice half a step, and the rounding's own rounding."""
LANES = 128
"""Partial sums of an inner product."""
CHUNK = 64
"""Columns that a scan passes over together, at most."""
QUEUE, PENDING, BIDS, DEFERRED, SPARES_LOST, EXACT, REMADE = range(7)
"""Places in the counters: rows queued, rows waiting for a list, bids, rows left to the augmentation, columns that
spare rows lost, exact costs computed, lists remade."""
COUNTERS = 8
index: Any = np.int64
"""A row, column or place as int64, from arrays of any type: so every kernel is compiled for one type only."""


@njit(cache=True, nogil=True)
def dot(a: Float32, b: Float32) -> float:
    """Inner product of two float32 vectors in float64, summed in one fixed order.

    The order must not be the compiler's choice: two kernels that price the same pair have to agree to the last bit.
    Lanes that never mix until the end are vectorized without that freedom.
    """
    lanes = np.zeros(LANES, np.float64)
    whole = a.shape[0] - a.shape[0] % LANES
    for k in range(0, whole, LANES):
        for lane in range(LANES):
            lanes[lane] += np.float64(a[k + lane]) * np.float64(b[k + lane])
    for k in range(whole, a.shape[0]):
        lanes[k - whole] += np.float64(a[k]) * np.float64(b[k])
    half = LANES // 2
    while half > 0:
        for lane in range(half):
            lanes[lane] += lanes[lane + half]
        half //= 2
    return lanes[0]


@inner
def exact_cost(costs: Costs, i: int, j: int) -> int:
    """Cost of row i in column j in grid steps."""
    if j >= costs.right.shape[0]:
        return costs.private_cost[i]
    if costs.potentials.row.shape[0] > 0:
        return costs.column_cost[j] + steps_of(remainder(costs, i, j), costs.potentials)
    given = costs.given.shape[0] > 0
    product = np.float64(costs.left[costs.given[i], j]) if given else dot(costs.left[i], costs.right[j])
    return costs.column_cost[j] - np.int64(np.rint(2.0 * product * costs.unit))


@njit(cache=True, nogil=True)
def exact_costs(rows: Int64, columns: Int64, costs: Costs, out: Int64) -> None:
    """Costs of pairs of rows and columns."""
    for p in range(rows.shape[0]):
        out[p] = exact_cost(costs, rows[p], columns[p])


@inner
def certain_cost(i: int, j: int, costs: Costs, lists: Lists, counters: Int64) -> int:
    """Exact cost of a pair, remembered where the pair is listed."""
    slot, r = -1, lists.of[i]
    for t in range(lists.start[r], lists.start[r] + lists.length[r]):
        if lists.column[t] == j:
            slot = t
            break
    if slot >= 0 and lists.exact[slot]:
        return lists.cost[slot]
    counters[EXACT] += 1
    cost = exact_cost(costs, i, j)
    if slot >= 0:
        lists.cost[slot], lists.exact[slot] = cost, True
    return cost


@njit(cache=True, nogil=True)
def squared_norms(rows: Float32, out: Float64) -> None:
    """Squared Euclidean norm of every row."""
    for i in range(rows.shape[0]):
        out[i] = dot(rows[i], rows[i])


@njit(cache=True, nogil=True, fastmath=FAST)
def squared_distances(left: Float32, right: Float32, partner: Int64, out: Float64) -> None:
    """Squared Euclidean distance of every row and its partner, without the cancellation of inner products."""
    for i in range(partner.shape[0]):
        a, b, total = left[i], right[partner[i]], 0.0
        for k in range(a.shape[0]):
            difference = np.float64(a[k]) - np.float64(b[k])
            total += difference * difference
        out[i] = total


@njit(cache=True, nogil=True)
def quantize(similarity: Float32, out: Int16, scale: Float32) -> None:
    """Rows of inner products as int16 multiples of a step per row; the error is at most half a step."""
    for i in range(similarity.shape[0]):
        row, quantized = similarity[i], out[i]
        top = np.float32(0)
        for j in range(row.shape[0]):
            top = max(top, abs(row[j]))
        scale[i] = top / np.float32(32767)
        inverse = np.float32(1) / scale[i] if scale[i] > 0 else np.float32(0)
        for j in range(row.shape[0]):
            quantized[j] = np.int16(np.rint(row[j] * inverse))


@njit(cache=True, nogil=True, fastmath=FAST)
def scan_minimum(row: Int16, offset: Float32, norm: Float32, twice: Real, beta: Real, low: int, high: int) -> Real:
    """Least lower bound of cost - price among columns low..high-1."""
    best = np.float32(3e38)
    for j in range(low, high):
        best = min(best, -twice * np.float32(row[j]) - offset[j] - beta * norm[j])
    return best


@njit(cache=True, nogil=True)
def kth_least(values: Float32, k: int) -> Real:
    """The k-th least value, counted from 0, by Hoare's selection; `values` is left reordered.

    NumPy's own partition does the same, but takes longer to compile than any of the kernels.
    """
    low, high = 0, values.shape[0] - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if k <= j:
            high = j
        elif k >= i:
            low = i
        else:
            break
    return values[k]


@inner
def select(
    row: Int16, offset: Float32, norm: Float32, twice: Real, beta: Real, wanted: int, chosen: Int32
) -> tuple[int, Real]:
    """At least `wanted` columns with the least lower bounds: their number, and a threshold that all others exceed.

    The wanted-th least of the minima of short chunks is no less than the wanted-th least of all values, and few
    values lie below it, so one pass for the minima and one over a few chunks are enough.
    """
    m = row.shape[0]
    chunk = CHUNK
    while chunk > 8 and m < 8 * wanted * chunk:
        chunk //= 2
    n_chunks = (m + chunk - 1) // chunk
    if wanted >= n_chunks:
        for j in range(m):
            chosen[j] = j
        return m, np.float32(np.inf)
    minima = np.empty(n_chunks, np.float32)
    for c in range(n_chunks):
        minima[c] = scan_minimum(row, offset, norm, twice, beta, c * chunk, min(m, (c + 1) * chunk))
    threshold = kth_least(minima.copy(), wanted - 1)
    count = 0
    # The two passes may round differently (fused or not): the slack keeps what the first pass saw.
    reach = threshold + np.float32(1e-6) * (abs(threshold) + twice * np.float32(32767))
    for c in range(minima.shape[0]):
        if minima[c] <= threshold:
            for j in range(c * chunk, min(m, (c + 1) * chunk)):
                if -twice * np.float32(row[j]) - offset[j] - beta * norm[j] <= reach:
                    chosen[count] = j
                    count += 1
    return count, threshold


@inner
def lower_cost(costs: Costs, i: int, j: int, scale: Real, level: int) -> int:
    """Lower bound of the exact cost, from the quantized inner product `level` * `scale`."""
    error = QUANTIZATION * scale + 2.0 * costs.gamma * costs.left_norm[i] * costs.right_norm[j]
    return costs.column_cost[j] + np.int64(np.floor((-2.0 * scale * level - error) * costs.unit)) - 2


@inner
def make_list(
    i: int, row: Int16, scale: Real, wanted: int, costs: Costs, prices: Prices, lists: Lists, scratch: Scratch
) -> int:
    """Replace row i's list by its `wanted` best columns at today's prices.

    Returns 0, or the number of slots needed where the list's capacity is too small (nothing is changed then).
    """
    i = index(lists.of[i])
    beta = np.float32(2.0 * costs.gamma * costs.left_norm[i])
    twice = np.float32(2) * scale
    count, threshold = select(row, prices.offset, costs.right_norm, twice, beta, wanted, scratch.chosen)
    private = costs.private_cost.shape[0] > 0
    if count + private > lists.capacity[i]:
        return count + private
    first = lists.start[i]
    for t in range(first, first + lists.length[i]):
        if lists.exact[t]:
            scratch.known[lists.column[t]] = lists.cost[t]
    before = lists.column[first : first + lists.length[i]].copy()
    for e in range(count):
        j, t = index(scratch.chosen[e]), first + e
        lists.column[t] = j
        lists.exact[t] = scratch.known[j] != INFINITE
        lists.cost[t] = scratch.known[j] if lists.exact[t] else lower_cost(costs, i, j, scale, row[j])
    for e in range(before.shape[0]):
        scratch.known[before[e]] = INFINITE
    if private:
        t = first + count
        lists.column[t], lists.cost[t], lists.exact[t] = row.shape[0] + i, costs.private_cost[i], True
    lists.length[i] = count + private
    lists.wanted[i] = wanted
    if threshold == np.inf:
        lists.bound[i] = INFINITE
    else:
        value = np.float64(threshold)
        slack = QUANTIZATION * scale + SCAN_SLACK * (2.0 * 32767.0 * scale + abs(value))
        lists.bound[i] = np.int64(np.floor((value - slack) * costs.unit)) - 2
    return 0


@njit(cache=True, nogil=True)
def make_lists(
    rows: Int64, local: Int64, quantized: Int16, scale: Float32, wanted: Int64,
    costs: Costs, prices: Prices, lists: Lists, scratch: Scratch, needed: Int64,
) -> None:  # fmt: skip
    """`make_list` for several rows; `local` are their positions in `quantized`."""
    for r in range(rows.shape[0]):
        at = local[r]
        needed[r] = make_list(rows[r], quantized[at], scale[at], wanted[r], costs, prices, lists, scratch)


@njit(cache=True, nogil=True)
def move_list(i: int, slots: int, lists: Lists) -> bool:
    """Move row i's list to the pool's tail with room for `slots`; False where the pool is full."""
    i = index(lists.of[i])
    tail, first = lists.tail[0], lists.start[i]
    if tail + slots > lists.cost.shape[0]:
        return False
    for e in range(lists.length[i]):
        lists.cost[tail + e] = lists.cost[first + e]
        lists.column[tail + e] = lists.column[first + e]
        lists.exact[tail + e] = lists.exact[first + e]
    lists.start[i], lists.capacity[i] = tail, slots
    lists.tail[0] = tail + slots
    return True


@inner
def renew(
    i: int, row: Int16, scale: Real, wanted: int, above: int, costs: Costs, prices: Prices, lists: Lists,
    scratch: Scratch,
) -> bool:  # fmt: skip
    """Remake row i's list for `wanted` columns, or more until its bound is above that; False = the pool is full."""
    i = index(lists.of[i])
    while True:
        needed = make_list(i, row, scale, wanted, costs, prices, lists, scratch)
        if needed == 0:
            if lists.bound[i] > above:
                return True
            wanted *= 2
        elif not move_list(i, 2 * needed, lists):
            return False
