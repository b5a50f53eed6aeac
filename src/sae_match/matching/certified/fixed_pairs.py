"""Exactly K pairs: the rejection cost at which the optimum has K pairs is found by bisection.

The least cost of K pairs is a convex function of K (it is a minimum-cost flow), so for every K there is a rejection
cost R at which a best matching with rejection has K pairs; cost(K) = best(R) - (n - K) R.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from sae_match.matching.certified.lazy import LazyAssignment
from sae_match.matching.certified.proof import Proof, total_cost

MOST_SOLVES = 64
"""Bisection steps: more than the bits of a cost."""

Solve = Callable[[int], tuple[LazyAssignment, Proof]]


@dataclass
class Bracket:
    """Rejection costs known to give too few and enough pairs."""

    low: int
    low_pairs: int
    high: int
    high_pairs: int

    def guess(self, wanted: int, step: int) -> int:
        """Next rejection cost: interpolated, or the middle in every third step (which bounds their number)."""
        middle = (self.low + self.high) // 2
        if step % 3 == 2 or self.high_pairs == self.low_pairs:
            return middle
        share = (wanted - self.low_pairs) / (self.high_pairs - self.low_pairs)
        return min(self.high - 1, max(self.low + 1, self.low + int(share * (self.high - self.low))))


def exactly(n_pairs: int, solve: Solve, largest: int) -> tuple[LazyAssignment, Proof]:
    """The best assignment of exactly `n_pairs` pairs.

    Args:
        solve: solves the problem with a given rejection cost in grid steps.
        largest: a rejection cost above which every row is matched.
    """
    lazy, proof = solve(largest)
    bracket = Bracket(0, 0, largest, n_pairs_of(lazy, proof))
    best = (lazy, proof)
    for step in range(MOST_SOLVES):
        if bracket.high_pairs == n_pairs or bracket.high - bracket.low <= 1 or proof.stopped:
            break
        guess = bracket.guess(n_pairs, step)
        lazy, proof = solve(guess)
        found = n_pairs_of(lazy, proof)
        if found >= n_pairs:
            bracket.high, bracket.high_pairs, best = guess, found, (lazy, proof)
        else:
            bracket.low, bracket.low_pairs = guess, found
    return _drop(n_pairs, *best)


def n_pairs_of(lazy: LazyAssignment, proof: Proof) -> int:
    """Rows that have a column of the other SAE."""
    return int((proof.partner < lazy.m).sum())


def _drop(n_pairs: int, lazy: LazyAssignment, proof: Proof) -> tuple[LazyAssignment, Proof]:
    """Leave out the dearest pairs beyond `n_pairs`: with equal costs R and R + 1 are a tie apart, and it is free."""
    partner = proof.partner.copy()
    matched = np.flatnonzero(partner < lazy.m)
    value = lazy.prices.price[partner[matched]]
    surplus = matched[np.lexsort((-matched, -value))][: len(matched) - n_pairs]
    partner[surplus] = lazy.m + surplus
    if proof.deficit is None:
        return lazy, replace(proof, partner=partner)
    bound = total_cost(lazy, proof.partner) - proof.deficit
    return lazy, replace(proof, partner=partner, deficit=total_cost(lazy, partner) - bound)
