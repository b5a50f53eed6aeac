"""Exact solvers of other packages: on a float64 matrix of all pairs, and POT's network simplex on the rows."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment

from sae_match.errors import UserError
from sae_match.matching.problem import MatchingProblem
from tests.benchmarks.methods import Answer, Int64, Method, NoAnswerError, Options, Promise

TILE = 512
"""Side of the square tiles in which the matrix is made: their float64 copies are all the memory that it takes."""

MOST_PIVOTS = 2**31 - 1

Float64 = npt.NDArray[np.float64]
Solve = Callable[[Float64], tuple[Int64, Int64]]
"""Cost matrix to row and column indices of the pairs."""


def inner_product_costs(problem: MatchingProblem) -> Float64:
    """Minus the inner product of every pair, float64 [F, F]: minimizing it maximizes the inner product."""
    return _matrix(problem, distances=False)


def squared_distances(problem: MatchingProblem) -> Float64:
    """The squared distance of every pair, float64 [F_a, F_b]."""
    return _matrix(problem, distances=True)


def _matrix(problem: MatchingProblem, distances: bool) -> Float64:
    n, m = problem.shape
    cost = torch.empty(n, m, dtype=torch.float64)
    for i in range(0, n, TILE):
        left = problem.left[i : i + TILE].to(torch.float64)
        for j in range(0, m, TILE):
            right = problem.right[j : j + TILE].to(torch.float64)
            tile = torch.mm(left, right.T)
            if distances:
                tile.mul_(-2.0).add_(left.square().sum(1)[:, None]).add_(right.square().sum(1)).clamp_(min=0.0)
            cost[i : i + TILE, j : j + TILE] = tile if distances else tile.neg_()
    return cost.numpy()


def _dense(solve: Solve, distances: bool, problem: MatchingProblem, options: Options) -> Answer:
    """Make the matrix, then time the solver on it."""
    n, m = problem.shape
    if not distances and n != m:
        raise UserError("inner products and squared distances have the same optimum only where F_a = F_b")
    started = time.perf_counter()
    cost = squared_distances(problem) if distances else inner_product_costs(problem)
    made = time.perf_counter()
    rows, columns = solve(cost)
    seconds = time.perf_counter() - made
    partner = np.full(n, -1, np.int64)
    partner[rows] = columns
    return Answer(partner, seconds, setup=made - started)


def _lapjv(cost: Float64) -> tuple[Int64, Int64]:
    import lap

    partner, _ = lap.lapjv(cost, return_cost=False)
    return np.arange(len(cost)), partner


def _lapjvs(cost: Float64) -> tuple[Int64, Int64]:
    import lap

    rows, columns = lap.lapjvs(cost, return_cost=False, prefer_float32=False)
    return rows, columns


def _lap(name: str, cost: Float64) -> tuple[Int64, Int64]:
    import lap

    rows, columns = getattr(lap, name)(cost, return_cost=False)
    return rows, columns


def _fastlap(cost: Float64) -> tuple[Int64, Int64]:
    import fastlap  # type: ignore[import-not-found, unused-ignore]

    rows, columns = fastlap.linear_sum_assignment(cost)
    return rows, columns


def _laprust(cost: Float64) -> tuple[Int64, Int64]:
    import laprust  # type: ignore[import-not-found, unused-ignore]

    rows, columns = laprust.lapjv(cost, return_cost=False)
    return rows, columns


def emd_lazy(problem: MatchingProblem, options: Options) -> Answer:
    """POT's network simplex with uniform weights, F_a = F_b: it computes a distance whenever it looks at a pair."""
    import ot

    if problem.shape[0] != problem.shape[1]:
        raise UserError("uniform weights make an assignment only where F_a = F_b")
    sides = [side.double().numpy() for side in (problem.left, problem.right)]
    started = time.perf_counter()
    _, found = ot.emd2_lazy(*sides, numItermax=MOST_PIVOTS, log=True, return_matrix=True)
    seconds = time.perf_counter() - started
    if found["warning"] is not None:
        raise NoAnswerError(f"POT: {found['warning']}")
    plan = found["G"].tocoo()
    partner = np.full(len(sides[0]), -1, np.int64)
    partner[plan.row[plan.data > 0]] = plan.col[plan.data > 0]
    return Answer(partner, seconds, own_product=None)


def _method(label: str, solve: Solve, distances: bool, requires: str | None = None) -> Method:
    run = partial(_dense, solve, distances)
    # The product in float64 takes twice as long as in float32, and the matrix has to be written.
    return Method(
        label, Promise.exact, run, products=5.0, least_bytes=lambda width: 8 * width * width, requires=requires
    )


METHODS = {
    "scipy-product": _method("scipy dense, inner products", linear_sum_assignment, distances=False),
    "scipy-distance": _method("scipy dense, distances", linear_sum_assignment, distances=True),
    "lapjv": _method("lapx lapjv, distances", _lapjv, True, "lap"),
    "lapjvs": _method("lapx lapjvs, distances", _lapjvs, True, "lap"),
    "lapjvc": _method("lapx lapjvc, distances", partial(_lap, "lapjvc"), True, "lap"),
    "lapjvr": _method("lapx lapjvr, distances", partial(_lap, "lapjvr"), True, "lap"),
    "lapjvh": _method("lapx lapjvh, distances", partial(_lap, "lapjvh"), True, "lap"),
    "fastlap": _method("fastlap, distances", _fastlap, True, "fastlap"),
    "laprust": _method("laprust lapjv, distances", _laprust, True, "laprust"),
    "emd-lazy": Method("POT emd2_lazy", Promise.exact, emd_lazy, makes_product=True, products=1.0, requires="ot"),
}
