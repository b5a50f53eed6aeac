"""Where inner products are computed, and how far they may be off."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

from sae_match.assignment.arrays import Float32, Int64
from sae_match.assignment.list_kernels import dot
from sae_match.errors import UserError

SPOT_CHECKS = 16
"""Entries of every block that are compared with float64."""
FLOAT32_ULP = 2.0**-24
"""Relative rounding error of one float32 addition."""


class Product(ABC):
    """Inner products <left_i, right_j>, float32, each within `gamma` |left_i| |right_j| of the true one.

    Args:
        left, right: [n, D] and [m, D] float32.
    """

    half: bool = False
    """Whether factors are rounded to half precision; sums are float32 in any case."""

    def __init__(self, left: Float32, right: Float32) -> None:
        self.left, self.right = left, right
        # |sum of D rounded products - <a, b>| <= D u sum |a_k b_k| <= D u |a| |b|, in whatever order they are added.
        self.gamma = 1.001 * left.shape[1] * FLOAT32_ULP

    @abstractmethod
    def multiply(self, rows: Int64 | slice) -> Float32:
        """[r, m] inner products of some rows, as a new array."""

    def block(self, rows: Int64 | slice) -> Float32:
        """[r, m] inner products of some rows, spot-checked.

        Raises:
            UserError: they are further off than `gamma` says.
        """
        block = self.multiply(rows)
        left = self.left[rows]
        spots = (np.linspace(0, last, SPOT_CHECKS).astype(np.int64) for last in (len(left) - 1, len(self.right) - 1))
        for i, j in zip(*spots, strict=True):
            a, b = left[i], self.right[j]
            allowed = self.gamma * float(np.linalg.norm(a)) * float(np.linalg.norm(b))
            off = abs(float(block[i, j]) - dot(a, b))
            if not off <= allowed:
                raise UserError(self.describe_error(off, allowed))
        return block

    def describe_error(self, off: float, allowed: float) -> str:
        """What to do about a product that is off by more than is allowed."""
        return f"the matrix product is off by {off:.1e}, more than float32 allows ({allowed:.1e}): values overflow"


class NumpyProduct(Product):
    """The products that NumPy computes."""

    def multiply(self, rows: Int64 | slice) -> Float32:
        """[r, m] inner products of some rows, as a new array."""
        return np.asarray(self.left[rows] @ self.right.T, np.float32)


MakeProduct = Callable[[Float32, Float32], Product]
"""Makes the product of two sides, after they were rescaled."""
