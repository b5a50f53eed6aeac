"""Compiled kernels of the shortest augmenting paths that finish the assignment exactly (Jonker & Volgenant 1987).

Each search is Dijkstra's over columns, from a free row to the nearest unowned column. A row contributes the columns
of its list; the bound on all others waits in the heap like a column, and when it comes up the list is lengthened.
Costs that are only bounded are made exact when they come up.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sae_match.assignment.arrays import (
    INFINITE,
    SPARE,
    UNOWNED,
    Assignment,
    Bool,
    Costs,
    Float32,
    Int16,
    Int32,
    Int64,
    Lists,
    Prices,
    Scratch,
)
from sae_match.assignment.auction_kernels import set_price
from sae_match.assignment.compiled import inner, njit
from sae_match.assignment.list_kernels import REMADE, certain_cost, index, renew

DONE, POOL_FULL, HEAP_FULL, NEEDS_ROW, NO_PATH = range(5)
"""Outcomes of a search."""
HEAP, REACHED, GATE, ROW, UPPER, NEAREST, NEAREST_ROW, END = range(8)
"""Places in the state of a search: heap size, columns reached, the column through which the spare rows
were reached, the row whose list is too short, the least label of an unowned column, that column and the row it was
reached from, the unowned column where the search ended."""
SPARE_ROW = -1
"""The spare rows, as a predecessor or source: they cost nothing in any column and are all alike."""
NOBODY = -2
"""No row to go on from."""


class Search(NamedTuple):
    """Work space of the searches."""

    distance: Int64
    """[M] exact distance label; INFINITE between searches."""
    predecessor: Int32
    """[M] row through which the column was reached."""
    done: Bool
    """[M] whether the label is final."""
    reached: Int32
    """[M] columns with final labels, in order."""
    origin: Int64
    """[n + 1] distance of a row minus its dual, so that origin + cost - price is a column's label; last: spares."""
    state: Int64
    """[8] see HEAP ... END."""
    row_class: Int32
    """[n] rows of one class have the same costs in every column."""
    scanned: Int64
    """[n] per class, the last search that scanned one of its rows."""
    nearest: Int64
    """[n] per class, the least origin of those rows in that search."""
    number: Int64
    """[1] of searches so far."""


class Heap(NamedTuple):
    """A binary heap of (key, row, column); column -1 is the row's bound, -2 - j a column j with a bounded cost."""

    key: Int64
    row: Int32
    column: Int32


def new_search(row_class: Int32, n_columns: int) -> Search:
    """Work space for rows of these classes and n_columns columns."""
    n = len(row_class)
    return Search(
        distance=np.full(n_columns, INFINITE, np.int64),
        predecessor=np.empty(n_columns, np.int32),
        done=np.zeros(n_columns, np.bool_),
        reached=np.empty(n_columns, np.int32),
        origin=np.zeros(n + 1, np.int64),
        state=np.zeros(8, np.int64),
        row_class=row_class,
        scanned=np.zeros(n, np.int64),
        nearest=np.zeros(n, np.int64),
        number=np.zeros(1, np.int64),
    )


def new_heap(capacity: int) -> Heap:
    """An empty heap."""
    return Heap(np.empty(capacity, np.int64), np.empty(capacity, np.int32), np.empty(capacity, np.int32))


@inner
def push(heap: Heap, state: Int64, key: int, row: int, column: int) -> None:
    """Add an entry; the caller has made sure of the room."""
    i = state[HEAP]
    state[HEAP] += 1
    while i > 0:
        parent = (i - 1) >> 1
        if heap.key[parent] <= key:
            break
        heap.key[i], heap.row[i], heap.column[i] = heap.key[parent], heap.row[parent], heap.column[parent]
        i = parent
    heap.key[i], heap.row[i], heap.column[i] = key, row, column


@inner
def pop(heap: Heap, state: Int64) -> None:
    """Remove the least entry."""
    state[HEAP] -= 1
    size = state[HEAP]
    key, row, column = heap.key[size], heap.row[size], heap.column[size]
    i = 0
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size and heap.key[child + 1] < heap.key[child]:
            child += 1
        if heap.key[child] >= key:
            break
        heap.key[i], heap.row[i], heap.column[i] = heap.key[child], heap.row[child], heap.column[child]
        i = child
    heap.key[i], heap.row[i], heap.column[i] = key, row, column


@inner
def relax(j: int, key: int, row: int, heap: Heap, search: Search, held: Assignment) -> None:
    """An exact label for column j."""
    if key < search.distance[j] and key <= search.state[UPPER]:
        search.distance[j] = key
        if held.owner[j] == UNOWNED:
            search.state[UPPER], search.state[NEAREST], search.state[NEAREST_ROW] = key, j, row
        push(heap, search.state, key, row, j)


@inner
def scan_row(i: int, heap: Heap, search: Search, prices: Prices, lists: Lists, held: Assignment) -> bool:
    """Offer row i's listed columns and its bound to the heap; False where the heap is full."""
    state, r = search.state, lists.of[i]
    if state[HEAP] + lists.length[r] + 1 > heap.key.shape[0]:
        return False
    origin = search.origin[i]
    for t in range(lists.start[r], lists.start[r] + lists.length[r]):
        j = index(lists.column[t])
        key = origin + lists.cost[t] - prices.price[j]
        if search.done[j]:
            continue
        if lists.exact[t]:
            relax(j, key, i, heap, search, held)
        elif key < search.distance[j] and key <= state[UPPER]:
            push(heap, state, key, i, -2 - j)
    if lists.bound[r] < INFINITE and origin + lists.bound[r] <= state[UPPER]:
        push(heap, state, origin + lists.bound[r], i, -1)
    return True


@inner
def scan_spares(heap: Heap, search: Search, prices: Prices, held: Assignment) -> bool:
    """Offer every column to the spare rows, which pay nothing anywhere; False where the heap is full."""
    n_columns = prices.price.shape[0]
    if search.state[HEAP] + n_columns > heap.key.shape[0]:
        return False
    origin = search.origin[search.origin.shape[0] - 1]
    for j in range(n_columns):
        if not search.done[j]:
            relax(j, origin - prices.price[j], SPARE_ROW, heap, search, held)
    return True


@inner
def settle_column(
    j: int, row: int, key: int, search: Search, costs: Costs, prices: Prices, lists: Lists, held: Assignment,
    counters: Int64,
) -> int:  # fmt: skip
    """Column j has its final label: end there, or return whoever holds it, to go on from; NOBODY = no need to."""
    state = search.state
    search.done[j], search.predecessor[j] = True, row
    search.reached[state[REACHED]] = j
    state[REACHED] += 1
    owner = index(held.owner[j])
    if owner == UNOWNED:
        state[END] = j
    elif owner >= 0:
        cost = certain_cost(owner, j, costs, lists, counters)
        search.origin[owner] = key - cost + prices.price[j]
        # A row like one that was scanned before offers every column at the same cost or a higher one.
        like = search.row_class[owner]
        if search.scanned[like] != search.number[0] or search.nearest[like] > search.origin[owner]:
            search.scanned[like], search.nearest[like] = search.number[0], search.origin[owner]
            return owner
    elif state[GATE] < 0:
        # All spare rows share one dual: the first of their columns to be reached stands for them all.
        state[GATE] = j
        search.origin[search.origin.shape[0] - 1] = key + prices.price[j]
        return SPARE_ROW
    return NOBODY


@inner
def find_path(  # noqa: PLR0912  one loop: splitting it would hide the order of events
    source: int, quantized: Int16, scale: Float32, heap: Heap, search: Search, costs: Costs, prices: Prices,
    lists: Lists, held: Assignment, scratch: Scratch, counters: Int64,
) -> int:  # fmt: skip
    """Shortest path from `source` (a row or SPARE_ROW) to an unowned column, left in the search's arrays."""
    state = search.state
    state[:] = 0
    state[GATE], state[END], state[UPPER] = -1, -1, INFINITE
    search.number[0] += 1
    search.origin[source] = 0
    if source == SPARE_ROW:
        # From the spare rows themselves; no column stands before them.
        state[GATE] = prices.price.shape[0]
    else:
        search.scanned[search.row_class[source]], search.nearest[search.row_class[source]] = search.number[0], 0
    # Each kernel is called in one place only: every further call would be compiled again.
    following = source
    while True:
        fits = True
        if following >= 0:
            fits = scan_row(following, heap, search, prices, lists, held)
        elif following == SPARE_ROW:
            fits = scan_spares(heap, search, prices, held)
        if not fits:
            return HEAP_FULL
        if state[HEAP] == 0:
            return NO_PATH
        following = NOBODY
        key, i, column = heap.key[0], index(heap.row[0]), index(heap.column[0])
        if key >= state[UPPER]:
            # Nothing left can be nearer, and among equals the search need not go on: many may be equal.
            j, i, key = state[NEAREST], state[NEAREST_ROW], state[UPPER]
        else:
            pop(heap, state)
            if column == -1:
                # Unless the list has been lengthened since, for another row that shares it.
                if key >= search.origin[i] + lists.bound[lists.of[i]]:
                    if quantized.shape[0] == 0:
                        state[ROW] = i
                        return NEEDS_ROW
                    counters[REMADE] += 1
                    r = index(lists.of[i])
                    wanted, before = 2 * lists.wanted[r], lists.bound[r]
                    if not renew(i, quantized[i], scale[i], wanted, before, costs, prices, lists, scratch):
                        return POOL_FULL
                following = i
                continue
            j = -2 - column if column < -1 else column
            if search.done[j] or (column >= 0 and key > search.distance[j]):
                continue
            if column < -1:
                label = search.origin[i] + certain_cost(i, j, costs, lists, counters) - prices.price[j]
                relax(j, label, i, heap, search, held)
                continue
        following = settle_column(j, i, key, search, costs, prices, lists, held, counters)
        if state[END] >= 0:
            return DONE


@inner
def apply_path(source: int, search: Search, costs: Costs, prices: Prices, held: Assignment) -> None:
    """Lower the prices of the columns inside the search and shift the assignment along the path."""
    j = search.state[END]
    length = search.distance[j]
    for z in range(search.state[REACHED]):
        inside = search.reached[z]
        if search.distance[inside] < length:
            set_price(inside, prices.price[inside] - (length - search.distance[inside]), costs, prices)
    while True:
        row = search.predecessor[j]
        if row == SPARE_ROW:
            held.owner[j] = SPARE
            if source == SPARE_ROW:
                return
            j = search.state[GATE]
        else:
            before = held.partner[row]
            held.owner[j], held.partner[row] = row, j
            if row == source:
                return
            j = before


@inner
def clear_search(heap: Heap, search: Search) -> None:
    """Undo a search's labels."""
    for z in range(search.state[REACHED]):
        j = search.reached[z]
        search.done[j], search.distance[j] = False, INFINITE
    for z in range(search.state[HEAP]):
        column = heap.column[z]
        if column >= 0:
            search.distance[column] = INFINITE


@njit(cache=True, nogil=True)
def augment(
    sources: Int32, most: int, quantized: Int16, scale: Float32, heap: Heap, search: Search, costs: Costs,
    prices: Prices, lists: Lists, held: Assignment, scratch: Scratch, counters: Int64,
) -> tuple[int, int]:  # fmt: skip
    """Augment from up to `most` of the `sources` in turn: how many were finished, and why it stopped."""
    for s in range(min(most, sources.shape[0])):
        source = index(sources[s])
        outcome = find_path(source, quantized, scale, heap, search, costs, prices, lists, held, scratch, counters)
        if outcome == DONE:
            apply_path(source, search, costs, prices, held)
        clear_search(heap, search)
        if outcome != DONE:
            return s, outcome
    return min(most, sources.shape[0]), DONE
