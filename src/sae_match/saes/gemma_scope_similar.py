"""Gemma Scope SAEs of similar sparsity across layers (the paper's Fig. 15)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from sae_match.errors import UserError

CANONICAL_L0 = 100
"""The L0 that the published canonical choices aim at; ties go to the choice nearest to it."""


def choose_similar(available: Mapping[int, Sequence[int]], near: int | None = None) -> dict[int, int]:
    """One average L0 per layer, as even as possible: the smallest ratio of the largest to the smallest L0.

    The rule, exactly: among all windows [low, high] of L0s that hold at least one available L0 of every layer (and
    `near`, if given), take the one with the smallest high / low; of equals, the one whose geometric mean is nearest to
    100 in ratio, then the sparser one. Within the window each layer takes the L0 nearest in ratio to the window's
    geometric mean, of equals the smaller one. Ratios are compared exactly.

    Without `near` the evenest choice may be a very sparse one.

    Args:
        available: average L0s of each layer.
        near: an L0 that the window must hold.

    Raises:
        UserError: a layer without any L0, or no window that holds `near`.
    """
    empty = sorted(layer for layer, l0s in available.items() if not l0s)
    if empty or not available:
        raise UserError(f"sae.l0=similar: no SAEs to choose from at layers {empty or 'of an empty span'}")
    windows = [w for low in {l0 for l0s in available.values() for l0 in l0s} if (w := _window(available, low, near))]
    if not windows:
        raise UserError(f"sae.l0_near={near}: no choice of SAEs lies around this L0; there are {_extent(available)}")
    low, high = min(windows, key=lambda w: (Fraction(w[1], w[0]), _distance(w[0] * w[1], CANONICAL_L0**2), w[0]))
    return {
        layer: min((l0 for l0 in l0s if low <= l0 <= high), key=lambda l0: (_distance(l0 * l0, low * high), l0))
        for layer, l0s in available.items()
    }


def _window(available: Mapping[int, Sequence[int]], low: int, near: int | None) -> tuple[int, int] | None:
    """The narrowest window that begins at `low` and holds an L0 of every layer, and `near`."""
    if near is not None and low > near:
        return None
    least = [min((l0 for l0 in l0s if l0 >= low), default=None) for l0s in available.values()]
    high = max((l0 for l0 in least if l0 is not None), default=low)
    if None in least:
        return None
    return None if near is not None and high < near else (low, high)


def _distance(a: int, b: int) -> Fraction:
    """Ratio of two positive numbers, the larger on top."""
    return Fraction(max(a, b), min(a, b))


def _extent(available: Mapping[int, Sequence[int]]) -> str:
    lows = [min(l0s) for l0s in available.values()]
    highs = [max(l0s) for l0s in available.values()]
    return f"L0s {min(lows)}..{max(highs)}, geometric middle {math.isqrt(min(lows) * max(highs))}"
