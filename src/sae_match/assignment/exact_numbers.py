"""Exact arithmetic: inner products of float32 rows, and potentials, as integers of many limbs.

A float32 is a mantissa of 24 bits times a power of two, so a product has 48 bits and its place is known: adding it to
an integer that reaches from the lowest possible bit to the highest one loses nothing, whatever the magnitudes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from sae_match.assignment.arrays import Costs, Float32, Float64, Int64, Potentials
from sae_match.assignment.compiled import inner, njit

LIMB_BITS = 32
LIMB_MASK = 0xFFFFFFFF
HALF_BITS = 24
HALF_MASK = 0xFFFFFF
UNIT_EXPONENT = 150
"""A float32 with the biased exponent e is a whole mantissa times 2^(e - 150)."""
CAP_BITS = 47
"""A number of steps from 2^47 on is larger than every cap."""


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
    data = (limbs & LIMB_MASK).astype("<u4").tobytes()
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
    lowest = costs.potentials.lowest
    return costs._replace(potentials=Potentials(to_limbs(row, limbs), to_limbs(column, limbs), lowest, shift, cap))


def exact_remainders(costs: Costs, rows: Int64, columns: Int64) -> list[int]:
    """-2 <left_i, right_j> less the potentials, for pairs of rows and columns."""
    out = np.empty((len(rows), costs.potentials.row.shape[1]), np.int64)
    remainders(rows.astype(np.int64), columns.astype(np.int64), costs, out)
    return from_limbs(out)


@inner
def parts(bits: int) -> tuple[int, int]:
    """Signed mantissa and biased exponent of a float32 from its bits."""
    exponent = np.int64((bits >> 23) & 0xFF)
    mantissa = np.int64(bits & 0x7FFFFF)
    if exponent == 0:
        exponent = np.int64(1)
    else:
        mantissa |= 0x800000
    return (-mantissa if bits < 0 else mantissa), exponent  # type: ignore[return-value]


@inner
def add_at(limbs: Int64, value: int, position: int) -> None:
    """Add `value` (|value| < 2^25) times 2^position."""
    at, offset = position // LIMB_BITS, position % LIMB_BITS
    moved = value << offset
    limbs[at] += moved & LIMB_MASK
    limbs[at + 1] += moved >> LIMB_BITS


@inner
def carry(limbs: Int64) -> None:
    """Bring every limb but the last one into 0..2^32 - 1."""
    over = np.int64(0)
    for k in range(limbs.shape[0] - 1):
        value = limbs[k] + over
        limbs[k] = value & LIMB_MASK
        over = value >> LIMB_BITS
    limbs[limbs.shape[0] - 1] += over


@inner
def add_dot(limbs: Int64, a: Float32, b: Float32, factor: int, lowest: int) -> None:
    """Add `factor` (at most 2 in magnitude) times the inner product of `a` and `b`."""
    left, right = a.view(np.int32), b.view(np.int32)
    for k in range(a.shape[0]):
        mantissa_a, exponent_a = parts(left[k])
        mantissa_b, exponent_b = parts(right[k])
        value = factor * mantissa_a * mantissa_b
        if value != 0:
            position = exponent_a + exponent_b - 2 * UNIT_EXPONENT - lowest
            add_at(limbs, value & HALF_MASK, position)
            add_at(limbs, value >> HALF_BITS, position + HALF_BITS)


@inner
def remainder(costs: Costs, i: int, j: int) -> Int64:
    """-2 <left_i, right_j> less the potentials, in limbs."""
    potentials = costs.potentials
    limbs = np.empty(potentials.row.shape[1], np.int64)
    for k in range(limbs.shape[0]):
        limbs[k] = -potentials.row[i, k] - potentials.column[j, k]
    if costs.given.shape[0] > 0:
        mantissa, exponent = parts(costs.left[costs.given[i], j : j + 1].view(np.int32)[0])
        if mantissa != 0:
            add_at(limbs, -mantissa, exponent + 1 - UNIT_EXPONENT - potentials.lowest)
    else:
        add_dot(limbs, costs.left[i], costs.right[j], -2, potentials.lowest)
    carry(limbs)
    return limbs


@inner
def steps_of(limbs: Int64, potentials: Potentials) -> int:
    """Whole grid steps in a number, at most `potentials.cap`; a negative number counts as -1."""
    size, at, offset = limbs.shape[0], potentials.shift // LIMB_BITS, potentials.shift % LIMB_BITS
    if limbs[size - 1] < 0:
        return -1
    value = 0
    for k in range(at, size):
        place = LIMB_BITS * (k - at) - offset
        if place >= CAP_BITS:
            if limbs[k] != 0:
                return potentials.cap
        elif place <= 0:
            value += limbs[k] >> -place
        else:
            if limbs[k] >> (CAP_BITS - place) != 0:
                return potentials.cap
            value += limbs[k] << place
    return value if value < potentials.cap else potentials.cap


@njit(cache=True, nogil=True)
def remainders(rows: Int64, columns: Int64, costs: Costs, out: Int64) -> None:
    """`remainder` of several pairs."""
    for p in range(rows.shape[0]):
        limbs = remainder(costs, rows[p], columns[p])
        for k in range(limbs.shape[0]):
            out[p, k] = limbs[k]


@njit(cache=True, nogil=True)
def exact_squares(rows: Float32, lowest: int, out: Int64) -> None:
    """Squared norm of every row in limbs; `out` is 0 before."""
    for i in range(rows.shape[0]):
        add_dot(out[i], rows[i], rows[i], 1, lowest)
        carry(out[i])
