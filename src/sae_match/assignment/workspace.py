"""What the phases of a search share: costs, prices, candidate lists and their making, limits and timing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np
from tqdm import tqdm

from sae_match.assignment.arrays import (
    INFINITE,
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
from sae_match.assignment.list_kernels import COUNTERS, PENDING, REMADE, make_lists, move_list
from sae_match.assignment.rows import QuantizedRows, split

LIST_LENGTH, LONG_LIST_LENGTH = 16, 48
"""Columns that a list is first made for (it holds a few more), with a cache of inner products and without: a list that
needs a matrix product to be made anew is made to last."""
BATCH = 2048
"""Rows whose exhausted lists are remade together."""
FEW = 64
"""With no more rows than this in the queue, lists are remade one at a time as they are needed."""
SAMPLE_ROWS, PRICE_QUANTILE = 512, 0.05
"""Rows from which the first prices are estimated, and the quantile of a column's costs that they are."""
STRIPE = 1024
"""Columns whose quantiles are found together."""
SLOT_BYTES = 13
"""Bytes of one entry of a candidate list."""


def list_length(cached: bool) -> int:
    """Columns that a list is first made for."""
    return LIST_LENGTH if cached else LONG_LIST_LENGTH


def slots_per_row(cached: bool) -> int:
    """Room for one row's list."""
    return 2 * list_length(cached)


def lists_bytes(n: int, m: int, cached: bool) -> int:
    """Candidate lists with their room to grow, and what every row and column has beside them."""
    return 4 * n * slots_per_row(cached) * SLOT_BYTES + 120 * (n + m)


def most_slots(n: int, m: int, cached: bool, room: float) -> int:
    """List entries in `room` bytes beside what is required, and the first lists in any case."""
    return max(2 * n * (slots_per_row(cached) + 1) + 8 * m, int(room / SLOT_BYTES / 2))


class Stopped(Exception):  # noqa: N818  not an error: the answer is complete, only not proved
    """The search ended before the optimum; the message says why."""


@dataclass
class Workspace:
    """Prices, candidate lists and the assignment in hand: what all phases of a search work on.

    Args:
        costs: exact costs of the pairs.
        row_cost: [n] squared norms of the rows in cost units; they shift a row's costs and set the first prices.
        similarity: source of rows of inner products.
        deadline: time.monotonic() after which `run` stops; None = never.
        most_slots: largest pool of list entries (13 bytes each); `run` stops when it needs more.
        progress: show bars.
        indifferent: rows that are left out because every column costs them the same, by their places among all rows,
            ascending; they take what the others leave.
        alike: columns that cost every row its private cost, ascending; they are out of reach as columns, and a row that
            takes its private column stands for one that takes any of them.
        row_class: [n] rows of one class have the same costs in every column; None = every row is its own class.
    """

    costs: Costs
    row_cost: Int64
    similarity: QuantizedRows
    deadline: float | None = None
    most_slots: int = 1 << 40
    progress: bool = False
    indifferent: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    alike: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    row_class: Int32 | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.n, self.m = len(self.costs.left_norm), len(self.costs.right_norm)
        own_class = np.arange(self.n, dtype=np.int32)
        self.classes: Int32 = own_class if self.row_class is None else self.row_class
        # Where the rows are among all rows, the indifferent ones included.
        self.places = np.delete(np.arange(self.n + len(self.indifferent)), self.indifferent)
        self.n_columns = self.m + len(self.costs.private_cost)
        slots = min(self.m, slots_per_row(self.similarity.cached)) + 1
        self.lists = new_lists(self.classes, slots)
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
        for block in tqdm(blocks, **{**bar, "desc": "candidate lists"}):
            rows = self.first_of_class(block)
            with self.timed("lists" if self.similarity.cached else "product"):
                self.remake(rows, np.full(len(rows), list_length(self.similarity.cached), np.int64))
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
                # A column's costs side by side: selection is nearly twice as fast.
                costs = np.ascontiguousarray((own[:, None] - 2.0 * products[:, part]).T)
                least[part] = np.partition(costs, rank, axis=1)[:, rank]

        split(self.similarity.threads, self.m, quantiles)
        real = self.costs.column_cost[: self.m] + np.rint(least.astype(np.float64) * self.costs.unit).astype(np.int64)
        private = self.costs.private_cost + self.row_cost[: len(self.costs.private_cost)]
        self.set_prices(np.concatenate([real, private]))
        if self.spares:
            # The columns that will stay unmatched all share the highest price.
            ceiling = np.partition(self.prices.price, self.n)[self.n]
            self.set_prices(np.minimum(self.prices.price, ceiling))

    def set_prices(self, price: Int64) -> None:
        """Set all prices; after the first ones they may only fall, as every list's bound relies on it."""
        self.prices.price[:] = price
        self.prices.offset[:] = (price[: self.m] - self.costs.column_cost[: self.m]) / self.costs.unit

    # Lists

    def first_of_class(self, rows: Int64) -> Int64:
        """Those of some rows under which a class's list is kept."""
        return rows[self.classes[rows] == rows]

    def bounds(self, rows: Int64) -> Int64:
        """Bounds of the lists of some rows, as a copy."""
        return self.lists.bound[self.classes[rows]]

    def listed(self) -> bool:
        """Whether every row has a list."""
        return bool((self.bounds(np.arange(self.n)) > -INFINITE).all())

    def remake(self, rows: Int64, wanted: Int64) -> None:
        """Remake the lists of `rows`, each of another class, at today's prices, in as many threads as there are."""
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
        quantized, scale, local = source
        needed = np.zeros(len(rows), np.int64)
        free: SimpleQueue[Scratch] = SimpleQueue()
        for scratch in self.scratch:
            free.put(scratch)

        def work(low: int, high: int) -> None:
            part, scratch = slice(low, high), free.get()
            make_lists(
                rows[part], local[part], quantized, scale, wanted[part], self.costs, self.prices, self.lists, scratch,
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
        lists = np.unique(self.classes[rows]).astype(np.int64)
        before = self.bounds(lists)
        self.remake(lists, self.lists.wanted[lists])
        low = self.bounds(lists) <= before
        self.lengthen(lists[low], before[low])
        return rows

    def lengthen(self, rows: Int64, above: Int64) -> None:
        """Double the lists of `rows` until each bound is greater than its value in `above`."""
        lists, place = np.unique(self.classes[rows], return_inverse=True)
        greatest = np.full(len(lists), -INFINITE, np.int64)
        np.maximum.at(greatest, place, above)
        # One that holds every column, for another row that shares it, is as long as can be.
        short = self.lists.bound[lists] < INFINITE
        rows, above = lists[short].astype(np.int64), greatest[short]
        while len(rows):
            self.check_time()
            self.counters[REMADE] += len(rows)
            self.remake(rows, 2 * self.lists.wanted[rows])
            low = self.bounds(rows) <= above
            rows, above = rows[low], above[low]

    def make_room(self) -> None:
        """Grow the pool well before it is full, so that kernels seldom have to stop for it."""
        if self.lists.tail[0] + 4 * self.m > len(self.lists.cost):
            self.grow(8 * self.m)

    def grow(self, slots: int) -> None:
        """Enlarge the pool by half, and by `slots` at least."""
        if len(self.lists.cost) + slots > self.most_slots:
            raise Stopped("memory limit: the candidate lists have grown too long")
        self.lists = grow(self.lists, slots)
