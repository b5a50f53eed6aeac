"""From float32 rows to exact costs on a grid: scaling, rounding and the bounds that go with them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sae_match.assignment.arrays import MAX_SPREAD, Costs, Float32, Float64, Int32, Int64
from sae_match.assignment.list_kernels import squared_norms
from sae_match.assignment.products import MakeProduct, Product
from sae_match.assignment.rows import split

COST_BITS = 46
"""Resolution of a cost: 2^-46 of the largest possible one, about 1.4e-14; less from 2^15 rows on, so that the
sum of all costs along any path stays within 63 bits."""
NEGLIGIBLE = 1e-9
"""Uncertainty of a bound, relative to the cost of the ordinary pairs, up to which it is none."""
COMFORTABLE = (2.0**-40, 2.0**40)
"""Largest norms that are used as they are; others are rescaled by a power of two, which loses nothing."""


@dataclass(frozen=True)
class GridProblem:
    """A matching problem in whole grid steps, the narrower side as rows.

    Attributes:
        product: inner products of the sides, [n, D] and [m, D], n <= m, rescaled where their norms are extreme.
        costs: exact costs of pairs; no private columns.
        row_cost: [n] squared norms of the rows in grid steps.
        step: one grid step in the units of the objective.
        tolerance: absolute uncertainty of a sum of n costs from rounding.
    """

    product: Product
    costs: Costs
    row_cost: Int64
    step: float
    tolerance: float

    def with_rejection(self, rejection_steps: int) -> Costs:
        """The costs where a row may stay out for `rejection_steps`."""
        n, m = len(self.costs.left), len(self.costs.right)
        return self.costs._replace(
            column_cost=np.concatenate([self.costs.column_cost[:m], np.zeros(n, np.int64)]),
            private_cost=rejection_steps - self.row_cost,
        )

    def steps(self, value: float) -> int:
        """A value in the objective's units as grid steps; more than any pair can cost means the same as that."""
        largest = 8.0 * float(self.costs.unit) * self._span
        return round(min(value / self.step, largest))

    @property
    def _span(self) -> float:
        return (float(self.costs.left_norm.max()) + float(self.costs.right_norm.max())) ** 2


def is_wide(*norms: Float64) -> bool:
    """Whether the largest of some norms is more than `MAX_SPREAD` times the smallest one that is not 0."""
    both = np.concatenate(norms)
    both = both[both > 0]
    return len(both) > 0 and float(both.max()) > MAX_SPREAD * float(both.min())


def is_negligible(tolerance: float, costs: Float64, beside: float = 0.0) -> bool:
    """Whether rounding cannot have decided anything but ties: it is small against the pairs' ordinary costs.

    A few pairs may outweigh all others by orders of magnitude, so the costliest 1% of pairs do not count.

    Args:
        tolerance: uncertainty of the sum of `costs`.
        costs: of the matched pairs, none negative.
        beside: what else the objective holds.
    """
    kept = np.sort(costs)[: len(costs) - math.ceil(len(costs) / 100)]
    return tolerance <= NEGLIGIBLE * (float(kept.sum()) + beside)


def grid_problem(left: Float32, right: Float32, make: MakeProduct, threads: int) -> GridProblem:
    """Scale and round a problem with n <= m."""
    left, right, factor = comfortable(np.ascontiguousarray(left), np.ascontiguousarray(right))
    left_square, right_square = (_squares(side, threads) for side in (left, right))
    span = (math.sqrt(left_square.max()) + math.sqrt(right_square.max())) ** 2
    unit = 2.0 ** (cost_bits(len(left)) - math.ceil(math.log2(span))) if span > 0 else 1.0
    product = make(left, right)
    costs = Costs(
        left=left,
        right=right,
        given=np.empty(0, np.int64),
        left_norm=np.sqrt(left_square),
        right_norm=(np.sqrt(right_square) * (1 + 1e-6)).astype(np.float32),
        column_cost=np.rint(right_square * unit).astype(np.int64),
        private_cost=np.empty(0, np.int64),
        unit=unit,
        gamma=product.gamma,
    )
    step = 1.0 / unit / factor**2
    # Every cost is rounded to a step, and its inner product was summed in float64.
    summed = left.shape[1] * 2.0**-53 * math.sqrt(left_square.max() * right_square.max()) * 2.0 / factor**2
    row_cost = np.rint(left_square * unit).astype(np.int64)
    return GridProblem(product, costs, row_cost, step, len(left) * (2.0 * step + summed))


def row_classes(rows: Float32, norms: Float64) -> Int32:
    """[n] for every row, the first one that is equal to it; `norms` are the rows' own."""
    like = np.arange(len(rows), dtype=np.int32)
    _, label, count = np.unique(norms, return_inverse=True, return_counts=True)
    first: dict[tuple[int, int], int] = {}
    for i in np.flatnonzero(count[label] > 1).tolist():
        # 0 and -0 are equal; of rows that differ and share a hash, the later one stays alone.
        at = first.setdefault((int(label[i]), hash((rows[i] + 0).tobytes())), i)
        if np.array_equal(rows[i], rows[at]):
            like[i] = at
    return like


def cost_bits(n: int) -> int:
    """Bits of the largest cost in a problem of n rows."""
    return min(COST_BITS, 61 - math.ceil(math.log2(n + 1)))


def row_norms(rows: Float32, threads: int) -> Float64:
    """Euclidean norms; of every row of float32 numbers they lie within float64's range."""
    return np.sqrt(_squares(rows, threads))


def _squares(rows: Float32, threads: int) -> Float64:
    out = np.empty(len(rows), np.float64)
    split(threads, len(rows), lambda low, high: squared_norms(rows[low:high], out[low:high]))
    return out


def comfortable(left: Float32, right: Float32) -> tuple[Float32, Float32, float]:
    """Both sides times a power of two where their squares would leave float32's range, and that factor."""
    # Neither end allocates anything, unlike the largest of all magnitudes.
    largest = max(abs(float(end)) for side in (left, right) for end in (side.min(), side.max()))
    if largest == 0 or COMFORTABLE[0] <= largest <= COMFORTABLE[1]:
        return left, right, 1.0
    factor = 2.0 ** -math.floor(math.log2(largest))
    # In two steps: the factor itself may lie outside float32's range.
    half = 2.0 ** (math.log2(factor) // 2)
    half, rest = np.float32(half), np.float32(factor / half)
    return left * half * rest, right * half * rest, factor
