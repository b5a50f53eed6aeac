"""Matching problems of every kind that has broken an assignment solver, and exact answers for them."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sae_match.matching import MatchingProblem

KINDS = ["gaussian", "clustered", "duplicates", "constant", "integers", "outliers", "hubs", "planted"]

Floats = npt.NDArray[np.float64]


def problem_of(kind: str, n: int, m: int, d: int, seed: int) -> MatchingProblem:
    """A problem of one kind; the two sides share whatever structure the kind has."""
    g = torch.Generator().manual_seed(seed)

    def normal(rows: int) -> Tensor:
        return torch.randn(rows, d, generator=g)

    left, right = normal(n), normal(m)
    if kind == "clustered":
        centres = 10 * normal(3)
        left, right = (0.01 * x + centres[torch.randint(3, (len(x),), generator=g)] for x in (left, right))
    elif kind == "duplicates":
        pool = normal(max(1, min(n, m) // 3))
        left, right = (pool[torch.randint(len(pool), (len(x),), generator=g)] for x in (left, right))
    elif kind == "constant":
        left, right = torch.ones(n, d), torch.full((m, d), 2.0)
    elif kind == "integers":
        left, right = (torch.randint(-2, 3, x.shape, generator=g).float() for x in (left, right))
    elif kind == "outliers":
        left, right = (x * torch.exp(2 * torch.randn(len(x), 1, generator=g)) for x in (left, right))
    elif kind == "hubs":
        right[: max(1, m // 10)] *= 0.01
    elif kind == "planted":
        rows = normal(max(n, m))
        left, right = rows[:n], rows[torch.randperm(max(n, m), generator=g)[:m]] + 0.05 * right
    return MatchingProblem(left, right)


def distances(problem: MatchingProblem) -> Floats:
    """All squared distances in float64, by differences: independent of the solver's inner products."""
    difference = problem.left.double()[:, None, :] - problem.right.double()[None, :, :]
    result: Floats = difference.square().sum(dim=2).numpy()
    return result


def optimum(cost: Floats) -> float:
    """Least cost of a complete matching of the narrower side, by scipy."""
    rows, columns = linear_sum_assignment(cost)
    return float(cost[rows, columns].sum())


def least_optimum(cost: Floats, slack: float = 1e-9) -> list[int]:
    """The lexicographically least optimal assignment of the rows, by trying all; needs no more rows than columns."""
    best = optimum(cost)
    for columns in itertools.permutations(range(cost.shape[1]), cost.shape[0]):
        if sum(cost[i, j] for i, j in enumerate(columns)) <= best + slack:
            return list(columns)
    raise AssertionError("the optimum was not among the assignments")
