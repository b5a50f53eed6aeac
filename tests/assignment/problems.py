"""Public test matrices with their optima, and the classical families that are hard for assignment solvers."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

inf = float("inf")
Matrix = npt.NDArray[np.float64]

PUBLIC: list[tuple[list[list[float]], float]] = [
    # scipy.optimize, test_linear_assignment.py
    ([[400, 150, 400], [400, 450, 600], [300, 225, 300]], 850),
    ([[400, 150, 400, 1], [400, 450, 600, 2], [300, 225, 300, 3]], 452),
    ([[10, 10, 8], [9, 8, 1], [9, 7, 4]], 18),
    ([[10, 10, 8, 11], [9, 8, 1, 1], [9, 7, 4, 10]], 15),
    ([[10, inf, inf], [inf, inf, 1], [inf, 7, inf]], 18),
    # lap and lapx, test_lapjv.py
    (
        [
            [1000, 2, 11, 10, 8, 7, 6, 5],
            [6, 1000, 1, 8, 8, 4, 6, 7],
            [5, 12, 1000, 11, 8, 12, 3, 11],
            [11, 9, 10, 1000, 1, 9, 8, 10],
            [11, 11, 9, 4, 1000, 2, 10, 9],
            [12, 8, 5, 2, 11, 1000, 11, 9],
            [10, 11, 12, 10, 9, 12, 1000, 3],
            [10, 10, 10, 10, 6, 3, 1, 1000],
        ],
        17,
    ),
    ([[1000, 4, 1], [1, 1000, 3], [5, 1, 1000]], 3),
    ([[5, 1000, 3], [1000, 2, 2], [1, 5, 1000]], 6),
    ([[1000, 1001, 1000], [1000, 1000, 1001], [1, 2, 3]], 2001),
    ([[10, 10, 13], [4, 8, 8], [8, 5, 8]], 22),
    ([[11, 10, 6], [10, 11, 11], [11, 12, 15]], 28),
    ([[12, 4, 9], [16, 15, 14], [19, 13, 17]], 37),
    ([[2, 5, 7], [7, 10, 12], [1, 5, 9]], 18),
    ([[10, 6, 14, 1], [17, 18, 17, 15], [14, 17, 15, 8], [11, 13, 11, 4]], 41),
    ([[11, 20, inf, inf, inf], [12, inf, 12, inf, inf], [inf, 11, 10, 15, 9], [15, inf, inf, 22, inf],
      [13, inf, inf, inf, 15]], 71),
    ([[1000, 4, 1, inf], [1, 1000, 3, inf], [5, 1, 1000, inf], [inf, inf, inf, 0]], 3),
    ([[1000, 2, 11, 10], [6, 1000, 1, 8]], 3),
    # lap issues 20 and 21: rectangular with infinite, and with negative costs
    ([[inf, 11, 8], [8, inf, 7]], 16),
    ([[-28, -26, -24, -22], [-29, -28, -26, -22]], -56),
]  # fmt: skip

INFEASIBLE: list[list[list[float]]] = [
    [[inf, 0, 0], [inf, 1, 0], [inf, 0, 1]],
    [[0, 0, 0, inf, inf], [inf, inf, inf, 0, 0], [inf, inf, inf, 0, 0], [inf, inf, inf, 0, 0], [0, 0, 0, inf, inf]],
    [[19, 22, 16, inf, inf], [inf, inf, inf, 4, 13], [inf, inf, inf, 3, 14], [inf, inf, inf, 10, 12],
     [11, 14, 13, inf, inf]],
    [[0, inf, 0, 0, inf], [inf, inf, 0, 0, 0], [inf, inf, inf, 0, inf], [inf, inf, inf, 0, 0], [0, inf, 0, inf, inf]],
    [[inf] * 5 for _ in range(5)],
    [[inf, inf, 3], [inf, inf, 5]],
]  # fmt: skip


def seeded(hard: bool, forbidden: float | None = None) -> Matrix:
    """The 100 x 100 whole numbers of lap's tests: 1 to 100; hard = with offsets of rows and columns; forbidden = what
    4 % of the pairs cost then."""
    g = np.random.RandomState(1299821)
    cost = g.randint(1, 101, size=(100, 100))
    if hard:
        cost += np.array([g.randint(0, 100) for _ in range(100)])[:, None]
        cost += np.array([g.randint(0, 100) for _ in range(100)])[None, :]
    cost = cost.astype(np.float64)
    if forbidden is not None:
        draw = g.rand(100, 100)
        dear = draw < np.percentile(draw.flat, (0.04 - 0.01) * 100)
        dear[g.permutation(100), g.permutation(100)] = True
        cost[dear] = forbidden
    return cost


FAMILIES = [
    "uniform",
    "machine",
    "geometric",
    "two costs",
    "near ties",
    "ties",
    "sparse",
    "offsets",
    "negative",
    "big M",
]


def family(kind: str, n: int, m: int, seed: int) -> Matrix:
    """Whole numbers, so that the optimum is exact in any order of summation."""
    g = np.random.default_rng(seed)
    if kind == "machine":  # Machol and Wien: i j, the worst case of shortest augmenting paths
        cost = np.outer(np.arange(1, n + 1), np.arange(1, m + 1))
    elif kind == "geometric":  # distances of points in the plane
        x, y = g.integers(0, 1000, (n, 2)), g.integers(0, 1000, (m, 2))
        cost = np.rint(np.sqrt(((x[:, None] - y[None]) ** 2).sum(axis=2)))
    elif kind == "two costs":
        cost = np.where(g.random((n, m)) < 2 / m, 1, 100)
    elif kind == "near ties":  # every cost is the same up to its last bits
        cost = 2**40 + g.integers(0, 3, (n, m))
    elif kind == "ties":
        cost = g.integers(0, 3, (n, m))
    elif kind == "sparse":
        cost = np.where(g.random((n, m)) < 0.3, g.integers(0, 100, (n, m)), inf)
        cost[np.arange(n), g.permutation(m)[:n]] = 500
    elif kind == "offsets":  # of rows and columns, far larger than what matters
        cost = g.integers(0, 10, (n, m)) + 10**6 * g.integers(0, 100, (n, 1)) + 10**6 * g.integers(0, 100, (1, m))
    elif kind == "negative":
        cost = g.integers(-(10**6), 10**6, (n, m))
    elif kind == "big M":  # a large number stands for what is forbidden
        cost = np.where(g.random((n, m)) < 0.2, g.integers(0, 100, (n, m)), 10**9)
    else:
        cost = g.integers(0, 10**6, (n, m))
    return np.asarray(cost, np.float64)


def best_of(cost: Matrix, pairs: int) -> float:
    """Least cost of so many pairs, by trying all; needs small matrices."""
    n, m = cost.shape
    return min(
        sum(cost[i, j] for i, j in zip(rows, columns, strict=True))
        for rows in itertools.combinations(range(n), pairs)
        for columns in itertools.permutations(range(m), pairs)
    )
