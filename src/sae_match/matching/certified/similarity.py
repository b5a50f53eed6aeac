"""Where the rows of inner products come from: a half-precision cache, or the factors, whenever a row is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_match.errors import UserError
from sae_match.matching.certified.arrays import Float32, Int16, Int64
from sae_match.matching.certified.list_kernels import dot, quantise

SPOT_CHECKS = 16
"""Entries of every block of the product that are compared with float64."""


@dataclass
class Similarity:
    """Inner products <left_i, right_j> as int16 multiples of a step per row.

    Args:
        left: [n, D] float32 on the CPU.
        right: [m, D] float32 on the CPU.
        device: where the products are computed.
        cached: hold all n x m of them (2 bytes each), or compute rows anew whenever they are asked for.
        block_rows: rows computed at a time; changes memory use, not the result.
        threads: threads of the quantisation.
        gamma: relative error that a float32 inner product may have.
    """

    left: Float[Tensor, "n D"]
    right: Float[Tensor, "m D"]
    device: str
    cached: bool
    block_rows: int
    threads: int
    gamma: float
    quantised: Int16 = field(init=False)
    scale: Float32 = field(init=False)
    rows_computed: int = 0

    def __post_init__(self) -> None:
        n, m = len(self.left), len(self.right)
        self.quantised = np.empty((n if self.cached else 0, m), np.int16)
        self.scale = np.zeros(n if self.cached else 0, np.float32)
        self._columns = self.right.to(self.device).T
        self._right = self.right.numpy()
        self._spots = np.linspace(0, m - 1, SPOT_CHECKS).astype(np.int64)

    @property
    def complete(self) -> bool:
        """Whether every row is in the cache."""
        return self.cached and self.rows_computed >= len(self.left)

    def blocks(self) -> Iterator[Int64]:
        """Consecutive ranges of rows."""
        for start in range(0, len(self.left), self.block_rows):
            yield np.arange(start, min(len(self.left), start + self.block_rows))

    def compute(self, rows: Int64) -> None:
        """Fill the cache for consecutive `rows`."""
        first, last = int(rows[0]), int(rows[-1]) + 1
        self._product(self.left[first:last], self.quantised[first:last], self.scale[first:last])

    def products(self, rows: Int64) -> Float32:
        """Inner products of some rows in float32."""
        if self.cached:
            return self.quantised[rows] * self.scale[rows, None]
        block = torch.mm(self.left[torch.from_numpy(rows)].to(self.device), self._columns).cpu()
        self.rows_computed += len(rows)
        return block.numpy()

    def get(self, rows: Int64) -> tuple[Int16, Float32, Int64]:
        """Quantised rows, their steps, and where each of `rows` is among them."""
        if self.cached:
            return self.quantised, self.scale, rows
        quantised = np.empty((len(rows), len(self.right)), np.int16)
        scale = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), self.block_rows):
            part = slice(start, start + self.block_rows)
            self._product(self.left[torch.from_numpy(rows[part])], quantised[part], scale[part])
        return quantised, scale, np.arange(len(rows))

    def _product(self, left: Float[Tensor, "r D"], out: Int16, scale: Float32) -> None:
        block = torch.mm(left.to(self.device), self._columns).cpu()
        self._spot_check(left.numpy(), block)
        self.rows_computed += len(block)
        split(
            self.threads,
            len(block),
            lambda low, high: quantise(block.numpy()[low:high], out[low:high], scale[low:high]),
        )

    def _spot_check(self, left: Float32, block: Float[Tensor, "r m"]) -> None:
        """The error bound holds for IEEE float32 only: a reduced-precision product must not pass unnoticed."""
        for at, j in zip(np.linspace(0, len(left) - 1, SPOT_CHECKS).astype(np.int64), self._spots, strict=True):
            a, b = left[at], self._right[j]
            allowed = self.gamma * float(np.linalg.norm(a)) * float(np.linalg.norm(b))
            if not abs(float(block[at, j]) - dot(a, b)) <= allowed:
                off = abs(float(block[at, j]) - dot(a, b))
                raise UserError(
                    f"the float32 matrix product on {self.device} is off by {off:.1e}, more than float32 allows "
                    f"({allowed:.1e}): a reduced-precision mode is on, or values overflow. "
                    "Switch it off (torch.set_float32_matmul_precision('highest')) or set device=cpu."
                )


def split(threads: int, n: int, work: Callable[[int, int], None]) -> None:
    """Call `work(low, high)` over `threads` equal ranges of 0..n; the kernels inside release the interpreter lock."""
    if threads <= 1 or n < 2 * threads:
        work(0, n)
        return
    edges = np.linspace(0, n, threads + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(work, int(a), int(b)) for a, b in pairwise(edges)]:
            future.result()
