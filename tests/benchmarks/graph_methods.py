"""Sparse solvers on the graph of nearest neighbors: the idea that is public elsewhere, exact on the graph only."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from sae_match.matching.problem import MatchingProblem
from tests.benchmarks.methods import Answer, Int64, Method, NoAnswerError, Options, Promise

NEIGHBORS = 256
COST_STEPS = 2**20
"""Integer costs: the largest distance in the graph is this many steps."""
LEFT_OVER = 8192
"""With no more features than this outside the flow, they are matched to each other at the least cost."""
BLOCK_ROWS = 1024


class Graph(NamedTuple):
    """Every feature of A with its nearest features of B.

    Attributes:
        columns: [n, k] features of B, nearest first.
        distances: [n, k] their squared distances.
        product_seconds: time spent in the similarity product.
    """

    columns: npt.NDArray[np.int64]
    distances: npt.NDArray[np.float32]
    product_seconds: float


def nearest_neighbors(problem: MatchingProblem, k: int, device: str) -> Graph:
    """The graph of the `k` nearest features of B, in float32, one block of rows at a time."""
    n, m = problem.shape
    k = min(k, m)
    right = problem.right.to(device)
    right_square = right.square().sum(1)
    columns, distances, product = np.empty((n, k), np.int64), np.empty((n, k), np.float32), 0.0
    for start in range(0, n, BLOCK_ROWS):
        left = problem.left[start : start + BLOCK_ROWS].to(device)
        started = time.perf_counter()
        block = torch.mm(left, right.T)
        if device != "cpu":
            torch.cuda.synchronize()
        product += time.perf_counter() - started
        block.mul_(-2.0).add_(right_square)
        nearest = block.topk(k, dim=1, largest=False)
        columns[start : start + BLOCK_ROWS] = nearest.indices.cpu().numpy()
        squared = (nearest.values + left.square().sum(1)[:, None]).clamp_(min=0.0)
        distances[start : start + BLOCK_ROWS] = squared.cpu().numpy()
    return Graph(columns, distances, product)


def min_cost_flow(problem: MatchingProblem, options: Options) -> Answer:
    """OR-Tools' min-cost flow on the graph, integer costs. Where the graph has no perfect matching, the largest flow
    is taken, and the features outside it are matched to each other (at the least cost, if they are few)."""
    from ortools.graph.python.min_cost_flow import SimpleMinCostFlow  # type: ignore[import-untyped, unused-ignore]

    started = time.perf_counter()
    graph = nearest_neighbors(problem, NEIGHBORS, options.device)
    n, m = problem.shape
    k = graph.columns.shape[1]
    scale = COST_STEPS / max(float(graph.distances.max()), 1e-30)
    flow = SimpleMinCostFlow()
    tail = np.repeat(np.arange(n, dtype=np.int32), k)
    head = (n + graph.columns.ravel()).astype(np.int32)
    cost = np.rint(graph.distances.ravel().astype(np.float64) * scale).astype(np.int64)
    arcs = flow.add_arcs_with_capacity_and_unit_cost(tail, head, np.ones(len(tail), np.int64), cost)
    flow.set_nodes_supplies(np.arange(n + m, dtype=np.int32), np.repeat(np.array([1, -1], np.int64), [n, m]))
    status = flow.solve_max_flow_with_min_cost()
    if status != SimpleMinCostFlow.OPTIMAL:
        raise NoAnswerError(f"OR-Tools: {status.name}")
    used = np.asarray(flow.flows(arcs)) > 0
    partner = np.full(n, -1, np.int64)
    partner[tail[used]] = head[used] - n
    left_over = _complete(problem, partner)
    return Answer(
        partner, time.perf_counter() - started, graph.product_seconds, statistics={"outside_the_flow": float(left_over)}
    )


def _complete(problem: MatchingProblem, partner: Int64) -> int:
    """Match the features that the flow left out to each other, in place; returns how many they were. F_a = F_b, so
    minus the inner product will do as their cost."""
    rows = np.flatnonzero(partner < 0)
    columns = np.setdiff1d(np.arange(problem.shape[1]), partner[partner >= 0])
    if 0 < len(rows) <= LEFT_OVER:
        left, right = (side[torch.from_numpy(at)] for side, at in ((problem.left, rows), (problem.right, columns)))
        chosen, order = linear_sum_assignment(-torch.mm(left, right.T).numpy())
        rows, columns = rows[chosen], columns[order]
    partner[rows] = columns[: len(rows)]
    return len(rows)


def sparse_matching(problem: MatchingProblem, options: Options) -> Answer:
    """scipy's min_weight_full_bipartite_matching on the graph; without a perfect matching in it there is no answer."""
    started = time.perf_counter()
    graph = nearest_neighbors(problem, NEIGHBORS, options.device)
    n, m = problem.shape
    k = graph.columns.shape[1]
    # Explicit zeros would count as missing edges; a constant on every edge changes no optimum.
    weights = graph.distances.ravel().astype(np.float64) + float(graph.distances.max() or 1.0)
    biadjacency = csr_array((weights, graph.columns.ravel(), np.arange(0, n * k + 1, k)), shape=(n, m))
    try:
        rows, columns = min_weight_full_bipartite_matching(biadjacency)
    except ValueError as error:
        raise NoAnswerError(f"scipy: {error}") from error
    partner = np.full(n, -1, np.int64)
    partner[rows] = columns
    return Answer(partner, time.perf_counter() - started, graph.product_seconds)


METHODS = {
    "ortools-knn": Method(
        f"OR-Tools min-cost flow, {NEIGHBORS} neighbors",
        Promise.approximate,
        min_cost_flow,
        makes_product=True,
        products=2.0,
        least_bytes=lambda width: 40 * width * min(width, NEIGHBORS),
        requires="ortools",
    ),
    "scipy-sparse-knn": Method(
        f"scipy sparse, {NEIGHBORS} neighbors",
        Promise.approximate,
        sparse_matching,
        makes_product=True,
        products=2.0,
        least_bytes=lambda width: 24 * width * min(width, NEIGHBORS),
    ),
}
