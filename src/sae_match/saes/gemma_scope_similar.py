"""Gemma Scope SAEs of similar sparsity across layers (the paper's Fig. 15)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

from sae_match.errors import UserError

CANONICAL_L0 = 100
"""The L0 that the published canonical choices aim at; ties go to the choice nearest to it."""


def choose_similar(available: Mapping[int, Sequence[int]], near: int | None = None) -> dict[int, int]:
    """One average L0 per layer, as even as possible: the smallest ratio of the largest to the smallest L0.

    The rule, exactly: among all windows [low, high] of L0s that hold at least one available L0 of every layer, take the
    one with the smallest high / low; of equals, the one whose geometric mean is nearest to 100 in ratio, then the
    sparser one. Within the window each layer takes the L0 nearest in ratio to the window's geometric mean, of equals
    the smaller one. Ratios are compared exactly. The evenest choice may be a very sparse one: `near` asks for a level.

    Args:
        available: average L0s of each layer.
        near: each layer takes the L0 nearest in ratio to this one instead, of equals the smaller one.

    Raises:
        UserError: a layer without any L0.
    """
    empty = sorted(layer for layer, l0s in available.items() if not l0s)
    if empty or not available:
        raise UserError(f"sae.l0=similar: no SAEs to choose from at layers {empty or 'of an empty span'}")
    if near is not None:
        return {layer: min(l0s, key=lambda l0: (_distance(l0, near), l0)) for layer, l0s in available.items()}
    windows = [w for low in {l0 for l0s in available.values() for l0 in l0s} if (w := _window(available, low))]
    low, high = min(windows, key=lambda w: (Fraction(w[1], w[0]), _distance(w[0] * w[1], CANONICAL_L0**2), w[0]))
    return {
        layer: min((l0 for l0 in l0s if low <= l0 <= high), key=lambda l0: (_distance(l0 * l0, low * high), l0))
        for layer, l0s in available.items()
    }


def _window(available: Mapping[int, Sequence[int]], low: int) -> tuple[int, int] | None:
    """The narrowest window that begins at `low` and holds an L0 of every layer, if there is one."""
    least = [[l0 for l0 in l0s if l0 >= low] for l0s in available.values()]
    return (low, max(min(l0s) for l0s in least)) if all(least) else None


def _distance(a: int, b: int) -> Fraction:
    """Ratio of two positive numbers, the larger on top."""
    return Fraction(max(a, b), min(a, b))
