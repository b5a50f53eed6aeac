"""The lazy assignment: prices by auction, an exact finish by shortest augmenting paths, on short candidate lists.

Rows never outnumber columns. The columns that stay unmatched are held by zero-cost spare rows, all alike, which makes
every shape a square problem and lets prices start anywhere: they start at the columns' minima, so that every column
is somebody's first choice, and fall from there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np
from tqdm import tqdm

from sae_match.matching.certified.arrays import (
    INFINITE,
    SPARE,
    UNOWNED,
    Assignment,
    Costs,
    Float32,
    Int16,
    Int32,
    Int64,
    Prices,
    Scratch,
    grow,
    new_lists,
    new_scratch,
)
from sae_match.matching.certified.auction_kernels import (
    BIDS,
    COUNTERS,
    DEFERRED,
    PENDING,
    QUEUE,
    REMADE,
    SPARES_LOST,
    auction,
    reduce_rows,
    release,
)
from sae_match.matching.certified.list_kernels import make_lists, move_list
from sae_match.matching.certified.path_kernels import (
    HEAP_FULL,
    NEEDS_ROW,
    POOL_FULL,
    ROW,
    SPARE_ROW,
    augment,
    new_heap,
    new_search,
)
from sae_match.matching.certified.similarity import Similarity, split

logger = logging.getLogger(__name__)

LIST_LENGTH = 16
"""Columns that a list is first made for; it holds a few more."""
BATCH = 2048
"""Rows whose exhausted lists are remade together."""
FEW = 64
"""With no more rows than this in the queue, lists are remade one at a time as they are needed."""
FIRST_EPSILON, LAST_EPSILON, EPSILON_FACTOR = 0.01, 1e-6, 10.0
"""The auction's first and last epsilon, in units of the lists' median spread, and the ratio between rounds."""
WAR_BIDS, WAR_FACTOR = 6, 8
"""Bids per row in the first round after which epsilon is raised, and by how much."""
BIDS_PER_ROUND = 20
"""Bids per row in each later round; what is left then is cheaper to place by shortest paths."""
VISITS = 32
"""Visits of one row in the exact reduction before it is left to the shortest paths."""
SAMPLE_ROWS, PRICE_QUANTILE = 512, 0.05
"""Rows from which the first prices are estimated, and the quantile of a column's costs that they are."""
STRIPE = 1024
"""Columns whose quantiles are found together."""


class Stopped(Exception):  # noqa: N818  not an error: the answer is complete, only not proved
    """The search ended before the optimum; the message says why."""


@dataclass
class LazyAssignment:
    """One assignment problem on its way to the optimum; `run` advances it as far as time allows.

    Args:
        costs: exact costs of the pairs.
        row_cost: [n] squared norms of the rows in cost units; they shift a row's costs and set the first prices.
        similarity: source of rows of inner products.
        deadline: time.monotonic() after which `run` stops; None = never.
        most_slots: largest pool of list entries (13 bytes each); `run` stops when it needs more.
        progress: show bars.
    """

    costs: Costs
    row_cost: Int64
    similarity: Similarity
    deadline: float | None = None
    most_slots: int = 1 << 40
    progress: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.n, self.m = len(self.costs.left), len(self.costs.right)
        self.n_columns = self.m + len(self.costs.private_cost)
        slots = min(self.m, 2 * LIST_LENGTH) + 1
        self.lists = new_lists(self.n, slots)
        self.counters = np.zeros(COUNTERS, np.int64)
        self.held = Assignment(np.full(self.n_columns, UNOWNED, np.int32), np.full(self.n, UNOWNED, np.int32))
        self.prices = Prices(np.zeros(self.n_columns, np.int64), np.zeros(self.m, np.float32))
        self.scratch = [new_scratch(self.n_columns, self.m) for _ in range(self.similarity.threads)]
        self.queue = np.empty(self.n, np.int32)
        self.pending = np.empty(min(BATCH, self.n), np.int32)
        self.augmentations = 0

    @property
    def spares(self) -> int:
        """Number of spare rows: columns that stay unmatched."""
        return self.n_columns - self.n

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

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time spent inside to `seconds[phase]`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started

    def check_time(self) -> None:
        """Raise Stopped after the deadline."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise Stopped("time limit")

    # Preparation

    def prepare(self) -> None:
        """The similarity product, the first prices and the first lists."""
        blocks = list(self.similarity.blocks())
        bar = {"desc": "similarity", "unit": "block", "disable": not self.progress, "leave": False}
        if self.similarity.cached and not self.similarity.complete:
            with self.timed("product"):
                for rows in tqdm(blocks, **bar):
                    self.similarity.compute(rows)
                    self.check_time()
        with self.timed("prices"):
            self.first_prices()
        for rows in tqdm(blocks, **{**bar, "desc": "candidate lists"}):
            with self.timed("lists" if self.similarity.cached else "product"):
                self.remake(rows, np.full(len(rows), LIST_LENGTH, np.int64))
            self.check_time()

    def first_prices(self) -> None:
        """Price every column at a low quantile of its squared distances to a sample of rows.

        Higher than the minimum on purpose: a column that is too attractive loses its price in a few bids, but one
        that nobody wants is reached only once the prices of all others have fallen.
        """
        n = self.n
        rows = np.unique(np.linspace(0, n - 1, SAMPLE_ROWS).astype(np.int64))
        products = self.similarity.products(rows)
        own = (self.row_cost[rows] / self.costs.unit).astype(np.float32)
        rank = int(PRICE_QUANTILE * len(rows))
        least = np.empty(self.m, np.float32)

        def quantiles(low: int, high: int) -> None:
            for first in range(low, high, STRIPE):
                part = slice(first, min(high, first + STRIPE))
                least[part] = np.partition(own[:, None] - 2.0 * products[:, part], rank, axis=0)[rank]

        split(self.similarity.threads, self.m, quantiles)
        real = self.costs.column_cost[: self.m] + np.rint(least.astype(np.float64) * self.costs.unit).astype(np.int64)
        private = self.costs.private_cost + self.row_cost[: len(self.costs.private_cost)]
        self.lower(np.concatenate([real, private]), first=True)
        if self.spares:
            # The columns that will stay unmatched all share the highest price.
            ceiling = np.partition(self.prices.price, self.n)[self.n]
            self.lower(np.minimum(self.prices.price, ceiling))

    def lower(self, price: Int64, first: bool = False) -> None:
        """Set all prices; only the first time may one rise."""
        assert first or bool((price <= self.prices.price).all())
        self.prices.price[:] = price
        self.prices.offset[:] = (price[: self.m] - self.costs.column_cost[: self.m]) / self.costs.unit

    # Lists

    def remake(self, rows: Int64, wanted: Int64) -> None:
        """Remake the lists of `rows` at today's prices, in as many threads as there are."""
        source = self.similarity.get(rows)
        local = source[2]
        while len(rows):
            needed = self._make(rows, wanted, (source[0], source[1], local))
            short = needed > 0
            for i, slots in zip(rows[short].tolist(), needed[short].tolist(), strict=True):
                while not move_list(i, 2 * slots, self.lists):
                    self.grow(2 * slots)
            rows, local, wanted = rows[short], local[short], wanted[short]

    def _make(self, rows: Int64, wanted: Int64, source: tuple[Int16, Float32, Int64]) -> Int64:
        """`make_lists` in threads; returns the slots that the lists which did not fit would need."""
        quantised, scale, local = source
        needed = np.zeros(len(rows), np.int64)
        free: SimpleQueue[Scratch] = SimpleQueue()
        for scratch in self.scratch:
            free.put(scratch)

        def work(low: int, high: int) -> None:
            part, scratch = slice(low, high), free.get()
            make_lists(
                rows[part], local[part], quantised, scale, wanted[part], self.costs, self.prices, self.lists, scratch,
                needed[part],
            )  # fmt: skip
            free.put(scratch)

        split(self.similarity.threads if len(rows) > FEW else 1, len(rows), work)
        return needed

    def renew_pending(self) -> Int64:
        """Remake the lists of the pending rows, longer where prices have not moved since; returns these rows."""
        rows = self.pending[: self.counters[PENDING]].astype(np.int64)
        self.counters[PENDING] = 0
        self.counters[REMADE] += len(rows)
        before = self.lists.bound[rows]
        self.remake(rows, self.lists.wanted[rows])
        self.lengthen(rows[self.lists.bound[rows] <= before], before[self.lists.bound[rows] <= before])
        return rows

    def lengthen(self, rows: Int64, above: Int64) -> None:
        """Double the lists of `rows` until each bound is greater than its value in `above`."""
        while len(rows):
            self.check_time()
            self.counters[REMADE] += len(rows)
            self.remake(rows, 2 * self.lists.wanted[rows])
            low = self.lists.bound[rows] <= above
            rows, above = rows[low], above[low]

    # Auction

    def auction_rounds(self) -> None:
        """A first round that serves everybody, then rounds of falling epsilon, each from the last one's prices."""
        spread = float(np.median(self._spreads()))
        if spread <= 0:
            return
        epsilon = self.first_round(max(1, int(FIRST_EPSILON * spread)))
        while epsilon > max(1.0, LAST_EPSILON * spread):
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
        spread = np.zeros(self.n, np.int64)
        for i in range(0, self.n, max(1, self.n // 1024)):
            part = slice(self.lists.start[i], self.lists.start[i] + self.lists.length[i])
            values = self.lists.cost[part] - self.prices.price[self.lists.column[part]]
            spread[i] = min(self.lists.bound[i], int(values.max())) - int(values.min())
        return spread[:: max(1, self.n // 1024)]

    def bid(self, epsilon: int, head: int, most: int) -> int:
        """Bid until everybody is served, or `most` bids are made; returns the queue's head."""
        stop = int(self.counters[BIDS]) + most
        while self.counters[BIDS] < stop:
            if self.counters[QUEUE] == 0:
                if self.counters[SPARES_LOST] == 0:
                    break
                head = self.bid_for_spares(epsilon)
            head = auction(
                epsilon, min(50_000, int(stop - self.counters[BIDS])), FEW, self.queue, head, self.pending,
                self.counters, self.similarity.quantised, self.similarity.scale, self.costs, self.prices, self.lists,
                self.held, self.scratch[0],
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
        self.lower(price)
        losers = self.held.owner[taken]
        losers = losers[losers >= 0]
        self.held.partner[losers] = UNOWNED
        self.held.owner[taken] = SPARE
        self.queue[: len(losers)] = losers
        self.counters[QUEUE], self.counters[SPARES_LOST] = len(losers), 0
        # Every such bid counts once per column, so that a round ends.
        self.counters[BIDS] += lost
        return 0

    def make_room(self) -> None:
        """Grow the pool well before it is full, so that kernels seldom have to stop for it."""
        if self.lists.tail[0] + 4 * self.m > len(self.lists.cost):
            self.grow(8 * self.m)

    def grow(self, slots: int) -> None:
        """Enlarge the pool by half, and by `slots` at least."""
        if len(self.lists.cost) + slots > self.most_slots:
            raise Stopped("memory limit: the candidate lists have grown too long")
        self.lists = grow(self.lists, slots)

    # Exact finish

    def finish(self) -> None:
        """Free what is not exactly tight, reduce, and augment: afterwards the duals prove the optimum."""
        if self.spares:
            held = self.held.owner == SPARE
            if held.any():
                self.lower(np.minimum(self.prices.price, self.prices.price[held].min()))
        self.release(0)
        rows = self.queue[: self.counters[QUEUE]].copy()
        for _ in range(2):
            rows = self.reduce(rows)
        lost = self.spares - int((self.held.owner == SPARE).sum())
        self.augment(np.concatenate([rows, np.full(lost, SPARE_ROW, np.int32)]))

    def reduce(self, rows: Int32) -> Int32:
        """One pass of augmenting row reduction; returns the rows it leaves free, ascending."""
        deferred, visits = np.empty(self.n, np.int32), np.zeros(self.n, np.int32)
        queue = self.queue
        queue[: len(rows)] = np.sort(rows)[::-1]
        self.counters[QUEUE], self.counters[DEFERRED] = len(rows), 0
        while self.counters[QUEUE]:
            reduce_rows(
                VISITS, queue, deferred, self.pending, visits, self.counters, self.costs, self.prices, self.lists,
                self.held,
            )  # fmt: skip
            if self.counters[PENDING]:
                again = self.renew_pending()
                queue[self.counters[QUEUE] : self.counters[QUEUE] + len(again)] = again
                self.counters[QUEUE] += len(again)
            self.check_time()
        return np.sort(deferred[: self.counters[DEFERRED]])

    def augment(self, sources: Int32) -> None:
        """Shortest augmenting paths from all `sources`."""
        search, heap = new_search(self.n, self.n_columns), new_heap(4 * self.n_columns + 4096)
        for_spares = sources == SPARE_ROW
        sources = np.concatenate([sources[~for_spares], sources[for_spares]])
        with tqdm(total=len(sources), desc="augmenting paths", disable=not self.progress, leave=False) as bar:
            while len(sources):
                done, outcome = augment(
                    sources, 256, self.similarity.quantised, self.similarity.scale, heap, search, self.costs,
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
                    row = np.array([search.state[ROW]], np.int64)
                    self.lengthen(row, self.lists.bound[row].copy())
                self.check_time()
