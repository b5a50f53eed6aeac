"""Dual potentials of a matrix of costs from the prices of its columns, with all rounding counted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from sae_match.assignment.arrays import Float32, Float64

BLOCK_ROWS = 1024
"""Rows of a matrix, or of products, in work at a time."""
FLOAT64_BITS = 53
Matrix = Float64 | Float32


def row_potentials(costs: Matrix, price: Float64, error: float) -> tuple[Float64, Float64]:
    """[n] u_i = min_j (cost_ij - v_j), lowered by what float64 rounds and the costs' relative error, and [m] v."""
    unit = 0.0 if error else common_unit([costs], FLOAT64_BITS - bits_of(4 * len(costs)))
    if unit:
        # Where all costs are whole, potentials rounded down prove as much.
        price = np.floor(price / unit) * unit
    u = np.concatenate([(block * (1 - error) - price).min(axis=1) for block in _blocks(costs)])
    return u if unit else u - 2.0 ** (1 - FLOAT64_BITS) * np.abs(u), price


def common_unit(matrices: Sequence[Matrix], bits: int) -> float:
    """A power of two of which all finite numbers are whole multiples, at most 2^bits of it; 0 where there is none."""
    largest = max(float(np.abs(block).max(where=np.isfinite(block), initial=0)) for block in _blocks(*matrices))
    unit = 2.0 ** (bits_of(largest) - bits)
    whole = unit > 0 and all((np.rint(block / unit) * unit == block).all() for block in _blocks(*matrices))
    return unit if whole else 0.0


def bits_of(value: float) -> int:
    """The least k with value < 2^k."""
    return math.frexp(value)[1]


def _blocks(*matrices: Matrix) -> Iterator[Float64]:
    for matrix in matrices:
        for start in range(0, len(matrix), BLOCK_ROWS):
            yield matrix[start : start + BLOCK_ROWS].astype(np.float64, copy=False)
