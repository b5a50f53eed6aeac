"""Exact row and column potentials as Python integers, and their exchange with the compiled kernels."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from sae_match.matching.certified.arrays import Costs, Float32, Float64, Int64, Potentials
from sae_match.matching.certified.exact_kernels import LIMB_BITS, exact_squares, remainders


def lowest_exponent(rows: Float32) -> int:
    """An exponent e such that every entry is a multiple of 2^e: -149, or more where all entries are large."""
    least = [np.abs(part[part != 0]).min(initial=np.inf) for part in np.array_split(rows, -(-rows.size // 2**20))]
    smallest = np.float32(min(least))
    return max(1, int(smallest.view(np.int32)) >> 23) - 150 if np.isfinite(smallest) else 0


def to_limbs(values: Iterable[int], limbs: int) -> Int64:
    """[n, limbs] integers in two's complement, the last limb signed."""
    data = b"".join(value.to_bytes(limbs * LIMB_BITS // 8, "little", signed=True) for value in values)
    out = np.frombuffer(data, "<u4").astype(np.int64).reshape(-1, limbs)
    out[:, -1] = out[:, -1].astype(np.uint32).view(np.int32)
    return out


def from_limbs(limbs: Int64) -> list[int]:
    """The integers of rows of limbs."""
    size = limbs.shape[1] * LIMB_BITS // 8
    data = (limbs & 0xFFFFFFFF).astype("<u4").tobytes()
    return [int.from_bytes(data[at : at + size], "little", signed=True) for at in range(0, len(data), size)]


def as_integers(values: Float64, lowest: int) -> list[int]:
    """The largest multiples of 2^lowest that are not above the values, in those units."""
    return [math.floor(math.ldexp(value, -lowest)) for value in values.tolist()]


def as_floats(values: Iterable[int], lowest: int) -> Float64:
    """Multiples of 2^lowest, rounded to float64."""
    return np.array([math.ldexp(float(value), lowest) for value in values], np.float64)


def squares(rows: Float32, lowest: int, limbs: int) -> list[int]:
    """Squared norms in units of 2^lowest."""
    out = np.zeros((len(rows), limbs), np.int64)
    exact_squares(rows, lowest, out)
    return from_limbs(out)


def with_potentials(costs: Costs, row: list[int], column: list[int], limbs: int, shift: int, cap: int) -> Costs:
    """The same problem with costs less these potentials, in steps of 2^shift units."""
    potentials = Potentials(
        to_limbs(row, limbs), to_limbs(column, limbs), costs.potentials.lowest, shift, cap
    )  # fmt: skip
    return costs._replace(potentials=potentials)


def exact_remainders(costs: Costs, rows: Int64, columns: Int64) -> list[int]:
    """-2 <left_i, right_j> less the potentials, for pairs of rows and columns."""
    out = np.empty((len(rows), costs.potentials.row.shape[1]), np.int64)
    remainders(rows.astype(np.int64), columns.astype(np.int64), costs, out)
    return from_limbs(out)
