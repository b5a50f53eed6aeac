"""Exact nearest neighbors in memory that grows with the width: float32 products, confirmed in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from sae_match.assignment.compiled import njit
from sae_match.assignment.grid import comfortable
from sae_match.assignment.list_kernels import dot, kth_least
from sae_match.assignment.rows import split
from sae_match.errors import UserError

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FREE = -1
"""A row or column without a partner, and an entry of a list that is not used."""


class NearestLists(NamedTuple):
    """The cheapest columns of some rows, by (cost, column).

    Attributes:
        columns: [rows, length]; FREE where there are no more.
        costs: [rows, length] exact squared distances, up to the scale of `Neighbors`.
        settled: [rows] number of entries before which nothing comes.
        bound: [rows] every other column costs at least this; infinity = there is none.
    """

    columns: Ints
    costs: Floats
    settled: Ints
    bound: Floats


class Neighbors:
    """Nearest columns of rows on demand.

    Args:
        left, right: [n, D] and [m, D] float32 on the CPU.
        device: where products are computed.
        block_rows: rows computed at a time; changes memory use, not the result.
    """

    def __init__(
        self, left: Float[Tensor, "n D"], right: Float[Tensor, "m D"], device: str = "cpu", block_rows: int = 1024
    ) -> None:
        self.left, self.right, _ = comfortable(left.contiguous().numpy(), right.contiguous().numpy())
        left, right = torch.from_numpy(self.left), torch.from_numpy(self.right)
        self.device, self.block_rows = device, block_rows
        self.left_square, self.right_square = _squares(left), _squares(right)
        self.columns = np.arange(len(right))
        self._on_device = right.to(device)
        # Any order of summing D products in float32 (Higham, Accuracy and Stability, section 3.1).
        self._error = 1.01 * (left.shape[1] + 2) * 2.0**-24

    def drop(self, gone: Bools) -> None:
        """Forget columns for good, numbered as at the start."""
        kept = ~gone[self.columns]
        self.columns, self.right = self.columns[kept], self.right[kept]
        self.right_square = self.right_square[kept]
        self._on_device = torch.from_numpy(self.right).to(self.device)

    def nearest(self, rows: Ints, length: int, gone: Bools | None = None) -> NearestLists:
        """The nearest columns of each of `rows`: up to `length` of them, and at least one where there is one.

        Args:
            gone: [m] columns, numbered as at the start, that do not count.
        """
        free = np.ones(len(self.columns), np.bool_) if gone is None else ~gone[self.columns]
        found = self._lists(rows, length, free)
        tried = length
        # Ties with, or too little distance from, what is outside the list: only a longer one can tell.
        while len(short := np.flatnonzero((found.settled == 0) & (found.bound < np.inf))):
            tried *= 4
            longer = self._lists(rows[short], min(tried, len(self.columns)), free)
            for mine, other in zip(found, _cut(longer, length), strict=True):
                mine[short] = other
        return found

    def _lists(self, rows: Ints, length: int, free: Bools) -> NearestLists:
        blocks = [
            self._block(part, length, free)
            for part in np.split(rows, range(self.block_rows, len(rows), self.block_rows))
        ]
        return NearestLists(*map(np.concatenate, zip(*blocks, strict=True)))

    def _block(self, rows: Ints, length: int, free: Bools) -> NearestLists:
        left, n = self.left[rows], len(rows)
        products = torch.mm(torch.from_numpy(left).to(self.device), self._on_device.T).cpu().numpy()
        columns, costs, bound = np.empty((n, length), np.int64), np.empty((n, length)), np.empty(n)
        accurate: list[bool] = []

        def work(low: int, high: int) -> None:
            accurate.append(
                nearest_columns(
                    low, high, products, left, self.right, self.left_square[rows], self.right_square, free,
                    self._error, columns, costs, bound,
                )
            )  # fmt: skip

        split(torch.get_num_threads(), n, work)
        if not all(accurate):
            raise UserError(
                f"the float32 matrix product on {self.device} is less accurate than float32 allows: a "
                "reduced-precision mode is on, or values overflow. Switch it off "
                "(torch.set_float32_matmul_precision('highest')) or set device=cpu."
            )
        order = np.lexsort((columns, costs), axis=1)
        columns, costs = np.take_along_axis(columns, order, axis=1), np.take_along_axis(costs, order, axis=1)
        known = columns != FREE
        columns[known] = self.columns[columns[known]]
        return NearestLists(columns, costs, (costs < bound[:, None]).sum(axis=1), bound)


def _cut(lists: NearestLists, length: int) -> NearestLists:
    """The first `length` entries; what is cut off is outside the list from then on."""
    n = len(lists.settled)
    columns, costs = np.full((n, length), FREE, np.int64), np.full((n, length), np.inf)
    width = min(length, lists.columns.shape[1])
    columns[:, :width], costs[:, :width] = lists.columns[:, :width], lists.costs[:, :width]
    bound = np.where(lists.settled > length, lists.costs[:, width - 1], lists.bound)
    return NearestLists(columns, costs, np.minimum(lists.settled, length), bound)


def _squares(rows: Float[Tensor, "n D"]) -> Floats:
    return np.asarray(torch.cat([part.to(torch.float64).square().sum(dim=1) for part in rows.split(4096)]).numpy())


@njit(cache=True, nogil=True)
def nearest_columns(
    low: int, high: int, products: Any, left: Any, right: Any, left_square: Any, right_square: Any,
    free: Any, error: float, columns: Any, costs: Any, bound: Any,
) -> bool:  # fmt: skip
    """The free columns with the lowest bounds of their costs, for rows low..high of a block, in any order.

    A product bounds the cost of its pair from below; the columns with the lowest bounds get their exact cost, summed in
    float64 in one order: equal rows have equal costs on every machine.

    Args:
        products: [rows, m] float32 inner products.
        left, right: [rows, d], [m, d].
        left_square, right_square: squared norms.
        free: [m] columns that count.
        error: relative error that a product may have, in units of the two norms.
        columns, costs: [rows, length] output, filled up with FREE and infinity.
        bound: [rows] output: every free column that is not listed costs at least this.

    Returns:
        Whether every product was as accurate as it should be.
    """
    m, length = len(right), columns.shape[1]
    # Rounding of the squared norms and of the exact costs themselves.
    rounding = 4.0 * (left.shape[1] + 8) * 2.0**-53
    right_norm = np.sqrt(right_square)
    values: Any = np.empty(m)  # the selection is declared for float32, and compiled for either
    accurate = True
    for i in range(low, high):
        per_norm = 2.0 * error * np.sqrt(left_square[i])
        for j in range(m):
            values[j] = np.inf
            if free[j]:
                square = left_square[i] + right_square[j]
                values[j] = square - 2.0 * products[i, j] - (per_norm * right_norm[j] + rounding * square)
                accurate &= values[j] < np.inf
        if not accurate:
            return False  # NaN has no order
        bound[i] = kth_least(values.copy(), length) if length < m else np.inf
        columns[i], costs[i], at = FREE, np.inf, 0
        for j in range(m):
            if values[j] < bound[i]:
                difference = left[i].astype(np.float64) - right[j]
                columns[i, at], costs[i, at] = j, dot(difference, difference)
                slack = per_norm * right_norm[j] + rounding * (left_square[i] + right_square[j])
                accurate &= abs(values[j] + slack - costs[i, at]) <= slack
                at += 1
    return accurate
