"""Where the rows of inner products come from: a half-precision cache, or their source, whenever a row is asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from sae_match.assignment.arrays import Costs, Float32, Float64, Int16, Int64
from sae_match.assignment.list_kernels import quantize
from sae_match.assignment.products import Product

CLIP = 4.0
"""Largest quantized cost of a row in units of its median: a few huge ones must not spoil the resolution of all."""
COLUMN_CHUNK = 1024
"""Columns that are converted to float64 together."""


class QuantizedRows(ABC):
    """Inner products of n rows with m columns as int16 multiples of a step per row.

    Args:
        n, m: numbers of rows and columns.
        cached: hold all n x m of them (2 bytes each), or make rows anew whenever they are asked for.
        block_rows: rows made at a time; changes memory use, not the result.
        threads: threads of the quantization.
    """

    def __init__(self, n: int, m: int, cached: bool, block_rows: int, threads: int) -> None:
        self.n, self.m = n, m
        self.cached, self.block_rows, self.threads = cached, block_rows, threads
        self.quantized: Int16 = np.empty((n if cached else 0, m), np.int16)
        self.scale: Float32 = np.zeros(n if cached else 0, np.float32)
        self.rows_computed = 0

    @abstractmethod
    def block(self, rows: Int64 | slice) -> Float32:
        """[r, m] inner products of some rows, as a new array."""

    def products(self, rows: Int64) -> Float32:
        """[r, m] inner products of some rows, at most as inexact as the quantized ones."""
        if self.cached:
            return self.quantized[rows] * self.scale[rows, None]
        self.rows_computed += len(rows)
        return self.block(rows)

    @property
    def complete(self) -> bool:
        """Whether every row is in the cache."""
        return self.cached and self.rows_computed >= self.n

    def blocks(self) -> Iterator[Int64]:
        """Consecutive ranges of rows."""
        for start in range(0, self.n, self.block_rows):
            yield np.arange(start, min(self.n, start + self.block_rows))

    def compute(self, rows: Int64) -> None:
        """Fill the cache for consecutive `rows`."""
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        self._quantize(part, self.quantized[part], self.scale[part])

    def get(self, rows: Int64) -> tuple[Int16, Float32, Int64]:
        """Quantized rows, their steps, and where each of `rows` is among them."""
        if self.cached:
            return self.quantized, self.scale, rows
        quantized = np.empty((len(rows), self.m), np.int16)
        scale = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), self.block_rows):
            part = slice(start, start + self.block_rows)
            self._quantize(rows[part], quantized[part], scale[part])
        return quantized, scale, np.arange(len(rows))

    def _quantize(self, rows: Int64 | slice, out: Int16, scale: Float32) -> None:
        block = self.block(rows)
        self.rows_computed += len(block)
        split(self.threads, len(block), lambda low, high: quantize(block[low:high], out[low:high], scale[low:high]))


class FactorRows(QuantizedRows):
    """Inner products <left_i, right_j> of factors.

    Args:
        product: computes them.
        cached, block_rows, threads: as in `QuantizedRows`.
    """

    def __init__(self, product: Product, cached: bool, block_rows: int, threads: int) -> None:
        super().__init__(len(product.left), len(product.right), cached, block_rows, threads)
        self.product = product

    def block(self, rows: Int64 | slice) -> Float32:
        """[r, m] inner products of some rows, spot-checked."""
        return self.product.block(rows)


class GivenRows(QuantizedRows):
    """Rows of given inner products; a cache of them, half as large as the matrix, would make the search no faster.

    Args:
        matrix: [N, m] inner products.
        rows: [n] which of its rows take part.
        block_rows, threads: as in `QuantizedRows`.
    """

    def __init__(self, matrix: Float32, rows: Int64, block_rows: int, threads: int) -> None:
        super().__init__(len(rows), matrix.shape[1], False, block_rows, threads)
        self.matrix, self.rows = matrix, rows

    def block(self, rows: Int64 | slice) -> Float32:
        """[r, m] a copy of some rows."""
        return self.matrix[self.rows[rows]]


class RemainderRows(QuantizedRows):
    """Lower bounds of costs less potentials, as inner products: minus half of them, in units of the cap.

    Args:
        costs: the factors, or given inner products.
        norms: Euclidean norms of rows and columns; of given inner products, their largest magnitudes and 1.
        potentials: of rows and columns, in float64.
        cap: where the grid ends, in cost units.
        cached, block_rows, threads: as in `QuantizedRows`.
    """

    def __init__(
        self,
        costs: Costs,
        norms: tuple[Float64, Float64],
        potentials: tuple[Float64, Float64],
        cap: float,
        cached: bool,
        block_rows: int,
        threads: int,
    ) -> None:
        (row, column), (self.left_norm, self.right_norm) = potentials, norms
        super().__init__(len(row), len(column), cached, block_rows, threads)
        self.costs, self.row, self.column, self.cap = costs, row, column, cap

    def bounds(self, rows: Int64 | slice) -> Float64:
        """[r, m] float64 numbers that no remainder is below."""
        if len(self.costs.given):
            out: Float64 = -2.0 * self.costs.left[self.costs.given[rows]].astype(np.float64)
            relative = 0.0
        else:
            left = self.costs.left[rows].astype(np.float64)
            out = np.empty((len(left), self.m), np.float64)
            for start in range(0, self.m, COLUMN_CHUNK):
                part = slice(start, start + COLUMN_CHUNK)
                out[:, part] = left @ self.costs.right[part].astype(np.float64).T
            out *= -2.0
            relative = 2.002 * self.costs.left.shape[1] * 2.0**-53
        row = self.row[rows]
        out -= row[:, None]
        out -= self.column[None, :]
        out -= (2.0**-50 * np.abs(row))[:, None]
        out -= (2.0**-50 * np.abs(self.column))[None, :]
        out -= ((relative + 2.0**-50) * self.left_norm[rows])[:, None] * self.right_norm[None, :]
        return out

    def block(self, rows: Int64 | slice) -> Float32:
        """[r, m] minus half the bounds; a bound far above the row's median is lowered."""
        bounds = self.bounds(rows)
        middle = np.partition(bounds, self.m // 2, axis=1)[:, self.m // 2]
        top = np.where(middle > 0, np.minimum(self.cap, CLIP * middle), self.cap)
        # Remainders are never negative: a negative bound only shows that float64 does not resolve the pair.
        np.clip(bounds, 0.0, top[:, None], out=bounds)
        bounds *= -0.5 / self.cap
        return bounds.astype(np.float32)


def split(threads: int, n: int, work: Callable[[int, int], None]) -> None:
    """Call `work(low, high)` over `threads` equal ranges of 0..n; the kernels inside release the interpreter lock."""
    if threads <= 1 or n < 2 * threads:
        work(0, n)
        return
    edges = np.linspace(0, n, threads + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(work, int(a), int(b)) for a, b in pairwise(edges)]:
            future.result()
