"""First column potentials where some rows and columns are far longer than the others.

Among the long ones a pair costs orders of magnitude more or less than any other, so which of them compete must be
settled first: otherwise their conflicts would set the scale of the first grid. The others are one anonymous partner
here. The result only has to be good, not right: whatever it is, the row potentials that follow make it feasible.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from sae_match.matching.certified.arrays import Bool, Float64
from sae_match.matching.spread import MAX_SPREAD

MOST_LONG = 2048
"""Rows and columns of the small problem."""
ROUNDS = 100
"""Rounds of shortest paths for its potentials."""


def long_ones(norms: tuple[Float64, Float64]) -> tuple[Bool, Bool] | None:
    """Which rows and columns are far longer than the median one; None where they are none or too many to tell."""
    median = float(np.median(np.concatenate(norms)))
    rows, columns = (side > MAX_SPREAD * median for side in norms)
    if median == 0 or not 0 < int(rows.sum()) + int(columns.sum()) <= MOST_LONG:
        return None
    return rows, columns


def competing_potentials(cost: Float64, row_alone: Float64, column_alone: Float64) -> Float64:
    """Potentials of the columns, relative to those of all columns outside.

    Args:
        cost: [k, l] cost of long rows in long columns.
        row_alone: [k] least cost of each row in another column.
        column_alone: [l] least cost of each column in another row.
    """
    k, m = cost.shape
    small = np.zeros((k + m, m + k))
    small[:k, :m], small[:k, m:], small[k:, :m] = cost, row_alone[:, None], column_alone[None, :]
    assigned = linear_sum_assignment(small)[1]
    own = small[np.arange(k + m), assigned]
    potential = np.zeros(k + m)
    for _ in range(ROUNDS):
        reached = (small + (potential[assigned] - own)[:, None]).min(axis=0)
        if (reached >= potential).all():
            break
        potential = np.minimum(potential, reached)
    return potential[:m] - (potential[m:] if k else potential).max()
