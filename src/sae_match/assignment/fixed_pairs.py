"""Exactly K pairs: the rejection cost at which the optimum has K pairs is found by bisection.

The least cost of K pairs is a convex function of K (it is a minimum-cost flow), so for every K there is a rejection
cost R at which a best matching with rejection has K pairs; cost(K) = best(R) - (n - K) R. Where costs tie, the optimum
may pass over K between two neighboring integers R: then it is put together from the two optima.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from sae_match.assignment.arrays import Int32
from sae_match.assignment.proof import Attempt

BELOW_ALL_COSTS = -4
"""Steps: a rejection cost at which no pair is matched, as a squared distance is rounded by at most three steps."""


@dataclass
class Bracket:
    """Rejection costs known to give too few and enough pairs."""

    low: int
    low_pairs: int
    high: int
    high_pairs: int

    def guess(self, wanted: int, step: int) -> int:
        """Next rejection cost: interpolated, the geometric and the arithmetic middle in turn.

        The last bounds the number of steps; the second finds a cost that is far below the largest one.
        """
        value = (self.low + self.high) // 2
        if step % 3 == 0 and self.high_pairs > self.low_pairs:
            share = (wanted - self.low_pairs) / (self.high_pairs - self.low_pairs)
            value = self.low + int(share * 1024) * (self.high - self.low) // 1024
        elif step % 3 == 1:
            value = math.isqrt(max(1, self.low) * max(1, self.high))
        return min(self.high - 1, max(self.low + 1, value))


def exactly(n_pairs: int, solve: Callable[[int], Attempt], largest: int) -> Attempt:
    """The best assignment of exactly `n_pairs` pairs.

    Args:
        solve: solves the problem with a given rejection cost in grid steps.
        largest: a rejection cost above which every row is matched.
    """
    low, high = None, solve(largest)
    bracket = Bracket(BELOW_ALL_COSTS, 0, largest, high.n_pairs)
    step = 0
    while bracket.high_pairs > n_pairs and bracket.high - bracket.low > 1 and not high.proof.stopped:
        guess = bracket.guess(n_pairs, step)
        step += 1
        found = solve(guess)
        if found.n_pairs >= n_pairs:
            bracket.high, bracket.high_pairs, high = guess, found.n_pairs, found
        elif found.proof.stopped:
            break
        else:
            bracket.low, bracket.low_pairs, low = guess, found.n_pairs, found
    if bracket.high_pairs == n_pairs:
        return high
    n, m = high.lazy.n, high.lazy.m
    fewer = np.arange(m, m + n, dtype=np.int32) if low is None else low.proof.partner
    partner = between(fewer, high.proof.partner, n_pairs, m, high.costs_of)
    bounds = [attempt.deficit_of(partner) for attempt in (low, high) if attempt is not None]
    known = [deficit for deficit in bounds if deficit is not None]
    return replace(high, proof=replace(high.proof, partner=partner, deficit=min(known, default=None)))


def between(
    fewer: Int32, more: Int32, n_pairs: int, m: int, costs_of: Callable[[Int32], list[int]]
) -> Int32:  # fmt: skip
    """An assignment of `n_pairs` pairs from one with fewer and one with more.

    Their difference consists of disjoint alternating paths and cycles. If both are optimal at neighboring rejection
    costs, each path adds one pair at one of these two costs; the cheaper ones come first.
    """
    n = len(fewer)
    rows = np.flatnonzero(fewer != more)
    sides = np.concatenate([rows, rows]), np.concatenate([fewer[rows], more[rows]])
    real = sides[1] < m
    graph = coo_array((np.ones(int(real.sum()), np.int32), (sides[0][real], n + sides[1][real])), shape=(n + m, n + m))
    label = connected_components(graph, directed=False)[1][:n]
    before, after = costs_of(fewer), costs_of(more)
    gain: dict[int, int] = {}
    cost: dict[int, int] = {}
    for i in rows.tolist():
        of = int(label[i])
        gain[of] = gain.get(of, 0) + int(more[i] < m) - int(fewer[i] < m)
        cost[of] = cost.get(of, 0) + after[i] - before[i]
    paths = sorted((of for of, pairs in gain.items() if pairs > 0), key=lambda of: (cost[of], of))
    taken = paths[: n_pairs - int((fewer < m).sum())]
    return np.where(np.isin(label, taken) & (fewer != more), more, fewer).astype(np.int32)
