"""The lazy assignment: prices by auction, an exact finish by shortest augmenting paths, on short candidate lists.

Rows never outnumber columns. The columns that stay unmatched are held by zero-cost spare rows, all alike, which makes
every shape a square problem and lets prices start anywhere: they start at a low quantile of each column's costs, so
that every column is sought after, and fall from there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from tqdm import tqdm

from sae_match.assignment.arrays import INFINITE, SPARE, UNOWNED, Int32, Int64
from sae_match.assignment.auction_kernels import auction, reduce_rows, release
from sae_match.assignment.list_kernels import BIDS, DEFERRED, PENDING, QUEUE, SPARES_LOST
from sae_match.assignment.path_kernels import (
    HEAP,
    HEAP_FULL,
    NEEDS_ROW,
    POOL_FULL,
    ROW,
    SPARE_ROW,
    Heap,
    Search,
    augment,
    new_heap,
    new_search,
)
from sae_match.assignment.workspace import FEW, Stopped, Workspace

logger = logging.getLogger(__name__)

FIRST_EPSILON, LAST_EPSILON, EPSILON_FACTOR = 0.01, 1e-4, 10.0
"""The auction's first epsilon in units of the lists' median spread, its last one in units of that spread over the
number of rows, and the ratio between rounds. An assignment within epsilon of tight is within n epsilon of the optimum,
and no augmenting path is longer than that: a last epsilon well below 1 / n keeps every search short."""
WAR_BIDS, WAR_FACTOR = 6, 8
"""Bids per row in the first round after which epsilon is raised, and by how much."""
BIDS_PER_ROUND = 20
"""Bids per row in each later round; what is left then is cheaper to place by shortest paths."""
LONG_LISTS = 256
"""Mean length of the lists from which on no more auction rounds are held: so many columns are tied that bids are slow,
while shortest paths pass over rows that are alike."""
CALL_SECONDS = 0.1
"""How long a kernel works before the clock is looked at, about."""
MOST_BIDS, MOST_PATHS = 50_000, 256
"""Bids and augmenting paths of one call at most."""
VISITS = 32
"""Visits of one row in the exact reduction before it is left to the shortest paths."""


class CallSize:
    """How much a kernel is given to do in one call, so that no call takes much longer than `CALL_SECONDS`."""

    def __init__(self, most: int) -> None:
        self.most, self.now = most, max(1, most // 1024)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Adapt the size to what a call of it takes."""
        started = time.perf_counter()
        yield
        taken = time.perf_counter() - started
        if taken > 2 * CALL_SECONDS:
            self.now = max(1, self.now // 4)
        elif taken < CALL_SECONDS / 2:
            self.now = min(self.most, 2 * self.now)


class LazyAssignment(Workspace):
    """One assignment problem on its way to the optimum; `run` advances it as far as time allows."""

    def run(self) -> Stopped | None:
        """Solve; returns why it stopped early, with prices and the partial assignment as they are then."""
        try:
            self.prepare()
            with self.timed("auction"):
                self.auction_rounds()
            with self.timed("augmentation"):
                self.finish()
        except Stopped as stopped:
            return stopped
        return None

    # Auction

    def auction_rounds(self) -> None:
        """A first round that serves everybody, then rounds of falling epsilon, each from the last one's prices."""
        spread = float(np.median(self._spreads()))
        if spread <= 0:
            return
        epsilon = self.first_round(max(1, int(FIRST_EPSILON * spread)))
        while epsilon > max(1.0, LAST_EPSILON * spread / self.n):
            if self.lists.length[self.lists.of].sum() > LONG_LISTS * self.n:
                break
            epsilon = max(1, int(epsilon / EPSILON_FACTOR))
            self.release(epsilon)
            self.bid(epsilon, 0, BIDS_PER_ROUND * (self.n + self.spares))

    def first_round(self, epsilon: int) -> int:
        """Serve everybody; a price war is cut short by a larger epsilon. Returns the epsilon it took.

        A small epsilon keeps the prices of all who are served at once near their optimum. Where a few outliers can
        only be placed once all other prices have fallen far, it would take for ever.
        """
        self.release(epsilon)
        head = self.bid(epsilon, 0, WAR_BIDS * (self.n + self.spares))
        while self.counters[QUEUE] or self.counters[SPARES_LOST]:
            epsilon *= WAR_FACTOR
            if epsilon > INFINITE >> 16:
                break
            head = self.bid(epsilon, head, WAR_BIDS * (self.n + self.spares))
        return epsilon

    def _spreads(self) -> Int64:
        """Per row, how far its list reaches beyond its best column."""
        lists, rows = self.lists, self.lists.of[:: max(1, self.n // 1024)]
        place = np.arange(lists.length[rows].max())
        slots = lists.start[rows, None] + np.where(place < lists.length[rows, None], place, 0)
        values = lists.cost[slots] - self.prices.price[lists.column[slots]]
        spread: Int64 = np.minimum(lists.bound[rows], values.max(axis=1)) - values.min(axis=1)
        return spread

    def bid(self, epsilon: int, head: int, most: int) -> int:
        """Bid until everybody is served, or `most` bids are made; returns the queue's head."""
        stop = int(self.counters[BIDS]) + most
        size = CallSize(MOST_BIDS)
        while self.counters[BIDS] < stop:
            if self.counters[QUEUE] == 0:
                if self.counters[SPARES_LOST] == 0:
                    break
                head = self.bid_for_spares(epsilon)
            with size.timed():
                head = auction(
                    epsilon, min(size.now, int(stop - self.counters[BIDS])), FEW, self.queue, head, self.pending,
                    self.counters, self.similarity.quantized, self.similarity.scale, self.costs, self.prices,
                    self.lists, self.held, self.scratch[0],
                )  # fmt: skip
            self.make_room()
            for i in self.renew_pending() if self.counters[PENDING] else ():
                self.queue[(head + self.counters[QUEUE]) % self.n] = i
                self.counters[QUEUE] += 1
            self.check_time()
        logger.debug("epsilon %d: %d bids in all, %d rows left", epsilon, self.counters[BIDS], self.counters[QUEUE])
        return head

    def release(self, epsilon: int) -> None:
        """Free rows and spares whose columns are more than `epsilon` from their best; the free rows queue up."""
        self.counters[QUEUE] = release(epsilon, self.queue, self.lists, self.prices, self.held)
        if self.spares:
            held = self.held.owner == SPARE
            self.held.owner[held & (self.prices.price < self.prices.price.max() - epsilon)] = UNOWNED
            self.counters[SPARES_LOST] = self.spares - int((self.held.owner == SPARE).sum())

    def bid_for_spares(self, epsilon: int) -> int:
        """All spare rows without a column bid at once for the dearest columns; returns the queue's new head.

        They are alike and pay nothing anywhere, so the best column is the one of the highest price, and the price of
        those they take falls to that of the next one.
        """
        lost = int(self.counters[SPARES_LOST])
        candidates = np.flatnonzero(self.held.owner != SPARE)
        order = np.lexsort((candidates, self.held.owner[candidates] != UNOWNED, -self.prices.price[candidates]))
        taken = candidates[order[:lost]]
        price = self.prices.price.copy()
        following = price[candidates[order[lost]]] if lost < len(candidates) else price[taken].min()
        price[taken] = np.minimum(price[taken], following) - epsilon
        self.set_prices(price)
        losers = self.held.owner[taken]
        losers = losers[losers >= 0]
        self.held.partner[losers] = UNOWNED
        self.held.owner[taken] = SPARE
        self.queue[: len(losers)] = losers
        self.counters[QUEUE], self.counters[SPARES_LOST] = len(losers), 0
        # Every such bid counts once per column, so that a round ends.
        self.counters[BIDS] += lost
        return 0

    # Exact finish

    def finish(self) -> None:
        """Free what is not exactly tight, reduce, and augment: afterwards the duals prove the optimum."""
        if self.spares:
            held = self.held.owner == SPARE
            if held.any():
                self.set_prices(np.minimum(self.prices.price, self.prices.price[held].min()))
        self.release(0)
        rows = self.queue[: self.counters[QUEUE]].copy()
        for _ in range(2):
            rows = self.reduce(rows)
        lost = self.spares - int((self.held.owner == SPARE).sum())
        self.augment(np.concatenate([rows, np.full(lost, SPARE_ROW, np.int32)]))

    def reduce(self, rows: Int32) -> Int32:
        """One pass of augmenting row reduction; returns the rows it leaves free, ascending."""
        deferred, visits = np.empty(self.n, np.int32), np.zeros(self.n, np.int32)
        queue, size = self.queue, CallSize(MOST_BIDS)
        queue[: len(rows)] = np.sort(rows)[::-1]
        self.counters[QUEUE], self.counters[DEFERRED] = len(rows), 0
        while self.counters[QUEUE]:
            with size.timed():
                reduce_rows(
                    size.now, VISITS, queue, deferred, self.pending, visits, self.counters, self.costs, self.prices,
                    self.lists, self.held,
                )  # fmt: skip
            if self.counters[PENDING]:
                again = self.renew_pending()
                queue[self.counters[QUEUE] : self.counters[QUEUE] + len(again)] = again
                self.counters[QUEUE] += len(again)
            self.check_time()
        return np.sort(deferred[: self.counters[DEFERRED]])

    def augment(self, sources: Int32) -> None:
        """Shortest augmenting paths from all `sources`."""
        search, heap = new_search(self.classes, self.n_columns), new_heap(4 * self.n_columns + 4096)
        size = CallSize(MOST_PATHS)
        for_spares = sources == SPARE_ROW
        sources = np.concatenate([sources[~for_spares], sources[for_spares]])
        with tqdm(total=len(sources), desc="augmenting paths", disable=not self.progress, leave=False) as bar:
            while len(sources):
                with size.timed():
                    done, outcome = augment(
                        sources, size.now, self.similarity.quantized, self.similarity.scale, heap, search, self.costs,
                        self.prices, self.lists, self.held, self.scratch[0], self.counters,
                    )  # fmt: skip
                self.augmentations += done
                sources = sources[done:]
                bar.update(done)
                if outcome == HEAP_FULL:
                    heap = new_heap(2 * len(heap.key))
                elif outcome == POOL_FULL:
                    self.grow(8 * self.m)
                elif outcome == NEEDS_ROW:
                    rows = rows_in_reach(int(search.state[ROW]), heap, search)
                    self.lengthen(rows, self.bounds(rows))
                self.check_time()


def rows_in_reach(row: int, heap: Heap, search: Search) -> Int64:
    """A row whose list ended a search, and those whose lists would end it next: one product serves them all."""
    waiting = np.flatnonzero(heap.column[: search.state[HEAP]] == -1)
    nearest = waiting[np.argsort(heap.key[waiting], kind="stable")][: FEW - 1]
    return np.unique(np.append(heap.row[nearest].astype(np.int64), row))
