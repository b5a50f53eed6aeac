"""Exact nearest neighbours in memory that grows with the width: float32 products, confirmed in float64."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from sae_match.errors import UserError
from sae_match.matching.baselines.kernels import FREE, nearest_columns
from sae_match.matching.certified.similarity import split

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

COMFORTABLE = (2.0**-40, 2.0**40)
"""Largest entries that are used as they are; others are rescaled by a power of two, which loses nothing."""


class NearestLists(NamedTuple):
    """The cheapest columns of some rows, by (cost, column).

    Attributes:
        columns: [rows, length]; FREE past the settled entries.
        costs: [rows, length] exact squared distances, up to the scale of `Neighbours`.
        settled: [rows] number of entries before which nothing comes.
        bound: [rows] every other column costs at least this; infinity = there is none.
    """

    columns: Ints
    costs: Floats
    settled: Ints
    bound: Floats


class Neighbours:
    """Nearest columns of rows on demand.

    Args:
        left, right: [n, D] and [m, D] float32 on the CPU.
        device: where products are computed.
        block_rows: rows computed at a time; changes memory use, not the result.
    """

    def __init__(
        self, left: Float[Tensor, "n D"], right: Float[Tensor, "m D"], device: str = "cpu", block_rows: int = 1024
    ) -> None:
        left, right = _comfortable(left.contiguous(), right.contiguous())
        self.left, self.right = left.numpy(), right.numpy()
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
        n = len(rows)
        found = NearestLists(
            np.empty((n, length), np.int64), np.empty((n, length)), np.empty(n, np.int64), np.empty(n)
        )  # fmt: skip
        for start in range(0, n, self.block_rows):
            part = slice(start, start + self.block_rows)
            out = NearestLists(found.columns[part], found.costs[part], found.settled[part], found.bound[part])
            self._block(rows[part], free, out)
        known = found.columns != FREE
        found.columns[known] = self.columns[found.columns[known]]
        return found

    def _block(self, rows: Ints, free: Bools, out: NearestLists) -> None:
        left = self.left[rows]
        products = torch.mm(torch.from_numpy(left).to(self.device), self._on_device.T).cpu().numpy()
        accurate: list[bool] = []

        def work(low: int, high: int) -> None:
            accurate.append(
                nearest_columns(
                    low, high, products, left, self.right, self.left_square[rows], self.right_square, free,
                    self._error, *out,
                )
            )  # fmt: skip

        split(torch.get_num_threads(), len(rows), work)
        if not all(accurate):
            raise UserError(
                f"the float32 matrix product on {self.device} is less accurate than float32 allows: a "
                "reduced-precision mode is on, or values overflow. Switch it off "
                "(torch.set_float32_matmul_precision('highest')) or set device=cpu."
            )


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


def _comfortable(
    left: Float[Tensor, "n D"], right: Float[Tensor, "m D"]
) -> tuple[Float[Tensor, "n D"], Float[Tensor, "m D"]]:
    """Both sides times a power of two where their products would leave float32's range; the order stays."""
    largest = max(float(torch.linalg.vector_norm(side, ord=math.inf)) for side in (left, right))
    if largest == 0 or COMFORTABLE[0] <= largest <= COMFORTABLE[1]:
        return left, right
    exponent = -math.floor(math.log2(largest))
    # In two steps: the factor itself may lie outside float32's range.
    half = exponent // 2
    return left * 2.0**half * 2.0 ** (exponent - half), right * 2.0**half * 2.0 ** (exponent - half)
