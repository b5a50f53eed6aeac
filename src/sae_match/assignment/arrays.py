"""The arrays that the compiled kernels share: exact costs, candidate lists, prices and the assignment.

Costs and prices are int64 multiples of one grid step (`unit` steps to 1): sums along any augmenting path are exact, so
equal costs are truly equal and no comparison depends on the order of additions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Int16 = npt.NDArray[np.int16]
Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
Real = Any
"""A real number: a Python float or a NumPy scalar, as compiled code takes either."""

INFINITE = 1 << 62
"""Larger than any cost, price or path length."""
MAX_SPREAD = 1e3
"""Ratio of row norms up to which one grid resolves every cost."""
UNOWNED = -1
"""A column that nobody holds; a row without a column."""
SPARE = -2
"""A column held by a spare row: one of the zero-cost rows that take up the columns that stay unmatched."""


class Potentials(NamedTuple):
    """Exact row and column potentials, where the costs are what they leave; empty arrays where they are all 0.

    An exact number is an integer times 2^lowest. It is stored in limbs of 32 bits, least first, in two's complement:
    the last limb is signed. See `exact_numbers`.
    """

    row: Int64
    """[n, W] limbs."""
    column: Int64
    """[m, W] limbs."""
    lowest: int
    """Exponent of the lowest bit of the first limb."""
    shift: int
    """Bits by which a grid step lies above that bit."""
    cap: int
    """Steps; a larger cost counts as this."""


NO_POTENTIALS = Potentials(np.empty((0, 0), np.int64), np.empty((0, 0), np.int64), 0, 0, 0)


class Costs(NamedTuple):
    """What the exact cost of a pair is computed from; n rows, m columns.

    cost(i, j) = column_cost[j] - round(2 <left_i, right_j> unit): the squared distance without the row's own norm,
    which is the same for all its columns. With potentials, cost(i, j) = column_cost[j] +
    min(cap, floor((-2 <left_i, right_j> - row_i - column_j) / step)), computed exactly.
    """

    left: Float32
    """[n, D] rows; where the inner products are given, [N, m] these."""
    right: Float32
    """[m, D] columns; [m, 0] where the inner products are given."""
    given: Int64
    """[n] which row of the given inner products each row is; empty where they are computed from the factors."""
    left_norm: Float64
    """[n] Euclidean norms."""
    right_norm: Float32
    """[m] Euclidean norms, rounded up."""
    column_cost: Int64
    """[M] squared norms in grid steps; 0 for the private columns behind the first m."""
    private_cost: Int64
    """[n] cost of leaving the row out, in its private column m + i; empty where every row must be matched."""
    unit: float
    """Grid steps per unit of cost, a power of two."""
    gamma: float
    """Relative error bound of a float32 inner product."""
    potentials: Potentials = NO_POTENTIALS
    """Subtracted from the costs before they are rounded."""


class Lists(NamedTuple):
    """Per row, the columns worth looking at, and a bound on all others; rows with equal costs share one list.

    For every column j outside row i's list, cost(i, j) - price[j] >= bound[of[i]]. Prices only ever fall, so what held
    when the list was made holds for good.
    """

    of: Int32
    """[n] the row under which a row's list is kept; the arrays from `start` to `wanted` count at those rows only."""

    cost: Int64
    """[pool] exact cost, or a lower bound of it."""
    column: Int32
    """[pool]."""
    exact: Bool
    """[pool] whether `cost` is exact."""
    start: Int64
    """[n] where the row's list begins."""
    length: Int64
    """[n]."""
    capacity: Int64
    """[n]."""
    bound: Int64
    """[n]; INFINITE where the list holds every column."""
    wanted: Int64
    """[n] number of columns that the list was made for."""
    tail: Int64
    """[1] first free slot of the pool."""


class Prices(NamedTuple):
    """Column duals."""

    price: Int64
    """[M]."""
    offset: Float32
    """[m] price minus column_cost, in cost units: what the float32 scan of a row subtracts."""


class Assignment(NamedTuple):
    """Who holds what."""

    owner: Int32
    """[M] row that holds the column, UNOWNED or SPARE."""
    partner: Int32
    """[n] column that the row holds, or UNOWNED."""


class Scratch(NamedTuple):
    """Work space of one thread for making lists."""

    known: Int64
    """[M] exact costs carried from an old list to its successor; INFINITE between calls."""
    chosen: Int32
    """[m] columns that a scan selects."""


def new_scratch(n_columns: int, n_real: int) -> Scratch:
    """Work space for `n_real` columns and their private companions."""
    return Scratch(np.full(n_columns, INFINITE, np.int64), np.empty(n_real, np.int32))


def new_lists(row_class: Int32, slots: int) -> Lists:
    """Empty lists with `slots` entries for each of n rows and as much again to grow into; a class shares its list."""
    n = len(row_class)
    pool = 2 * n * slots + 64
    return Lists(
        of=row_class,
        cost=np.empty(pool, np.int64),
        column=np.empty(pool, np.int32),
        exact=np.zeros(pool, np.bool_),
        start=np.arange(n, dtype=np.int64) * slots,
        length=np.zeros(n, np.int64),
        capacity=np.full(n, slots, np.int64),
        bound=np.full(n, -INFINITE, np.int64),
        wanted=np.zeros(n, np.int64),
        tail=np.array([n * slots], np.int64),
    )


def grow(lists: Lists, at_least: int) -> Lists:
    """The same lists in a pool with at least `at_least` free slots."""
    extra = max(len(lists.cost) // 2, at_least)
    return lists._replace(
        cost=np.concatenate([lists.cost, np.empty(extra, np.int64)]),
        column=np.concatenate([lists.column, np.empty(extra, np.int32)]),
        exact=np.concatenate([lists.exact, np.zeros(extra, np.bool_)]),
    )
