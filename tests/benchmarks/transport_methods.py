"""Hierarchical transport: low-rank couplings split both sides again and again until the parts are small (Halmos et al.,
"Hierarchical Refinement", ICML 2025, arXiv 2503.03025), here with POT's low-rank Sinkhorn (Scetbon et al. 2021)."""

from __future__ import annotations

import time
import warnings

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from sae_match.matching.problem import MatchingProblem
from tests.benchmarks.methods import Answer, Int64, Method, NoAnswerError, Options, Promise

PART = 256
"""Features of a side below which a part is matched exactly."""
ITERATIONS, STOP = 30, 1e-3
"""Of each low-rank coupling: at most so many, and the change at which it ends."""


def hierarchical(problem: MatchingProblem, options: Options) -> Answer:
    """Halves of equal size by a coupling of rank 2, down to parts of `PART` features, which are matched exactly."""
    import ot

    started = time.perf_counter()
    left, right = (side.numpy().astype(np.float64) for side in (problem.left, problem.right))
    if len(left) != len(right):
        raise NoAnswerError("hierarchical transport needs sides of equal size")
    partner = np.full(len(left), -1, np.int64)
    parts = [(np.arange(len(left)), np.arange(len(right)))]
    couplings = 0
    while parts:
        rows, columns = parts.pop()
        if len(rows) <= PART:
            cost = cdist(left[rows], right[columns], "sqeuclidean")
            chosen, order = linear_sum_assignment(cost)
            partner[rows[chosen]] = columns[order]
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says so whenever it ends at its number of iterations
            first, second, _ = ot.lowrank_sinkhorn(
                left[rows], right[columns], rank=2, init="random", seed_init=options.seed, numItermax=ITERATIONS,
                stopThr=STOP,
            )  # fmt: skip
        couplings += 1
        parts += zip(_halves(rows, first), _halves(columns, second), strict=True)
    return Answer(partner, time.perf_counter() - started, None, statistics={"couplings": float(couplings)})


def _halves(features: Int64, coupling: np.ndarray) -> tuple[Int64, Int64]:
    """The half that lies more in the first of two clusters, and the rest."""
    order = np.argsort(coupling[:, 1] / coupling.sum(axis=1), kind="stable")
    middle = len(features) // 2
    return features[order[:middle]], features[order[middle:]]


METHODS = {
    "hierarchical": Method(
        "hierarchical transport, rank 2", Promise.approximate, hierarchical, makes_product=True, requires="ot"
    )
}
