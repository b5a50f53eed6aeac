"""Partial matching: a rejection cost, or a fixed number of pairs, against enlarged problems that scipy solves."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_match import UserError, match
from sae_match.matching import MatchingProblem
from sae_match.matching.certified import CertifiedSolver
from tests.builders import random_sae
from tests.matching.problems import KINDS, Floats, distances, optimum, problem_of

kinds = st.sampled_from(KINDS)


def best_with_rejection(cost: Floats, rejection: float) -> float:
    """Every row may take a private column at the cost of rejection."""
    if cost.shape[0] > cost.shape[1]:
        cost = cost.T
    private = np.full((len(cost), len(cost)), 1e12)
    np.fill_diagonal(private, rejection)
    return optimum(np.hstack([cost, private]))


def best_with_pairs(cost: Floats, pairs: int) -> float:
    """k-cardinality assignment: rows and columns that stay out are held by free partners of their own."""
    n, m = cost.shape
    large = np.zeros((n + m - pairs, m + n - pairs))
    large[:n, :m] = cost
    large[n:, m:] = 1e12
    return optimum(large)


@settings(max_examples=150)
@given(kind=kinds, n=st.integers(1, 16), m=st.integers(1, 16), seed=st.integers(0, 10**6), share=st.floats(0, 1.2))
def test_rejection_leaves_out_what_costs_more(kind: str, n: int, m: int, seed: int, share: float) -> None:
    problem = problem_of(kind, n, m, 3, seed)
    cost = distances(problem)
    rejection = share * float(cost.max())
    solution = CertifiedSolver().solve(replace(problem, rejection_cost=rejection))
    best = best_with_rejection(cost, rejection)
    scale = float(problem.left.square().sum() + problem.right.square().sum()) + 1e-30
    assert solution.objective == pytest.approx(best, rel=1e-11, abs=1e-11 * scale)
    assert solution.objective - solution.lower_bound <= 1e-10 * scale
    pairs = solution.permutation.matched
    assert bool((cost[pairs.numpy(), solution.permutation.indices[pairs].numpy()] <= rejection + 1e-9 * scale).all())


@settings(max_examples=100)
@given(kind=kinds, n=st.integers(1, 14), m=st.integers(1, 14), seed=st.integers(0, 10**6), data=st.data())
def test_exactly_so_many_pairs(kind: str, n: int, m: int, seed: int, data: st.DataObject) -> None:
    problem = problem_of(kind, n, m, 3, seed)
    pairs = data.draw(st.integers(1, min(n, m)))
    solution = CertifiedSolver().solve(replace(problem, n_pairs=pairs))
    best = best_with_pairs(distances(problem), pairs)
    scale = float(problem.left.square().sum() + problem.right.square().sum()) + 1e-30
    assert len(solution.permutation.matched) == pairs
    assert solution.lower_bound <= best + solution.tolerance + 1e-11 * scale
    assert solution.objective == pytest.approx(best, rel=1e-11, abs=1e-11 * scale)
    assert solution.objective - solution.lower_bound <= 1e-10 * scale


@pytest.mark.parametrize("seed", range(12))
def test_so_many_pairs_where_most_costs_tie(seed: int) -> None:
    """A pair cannot simply be dropped: an alternating path has to be walked."""
    g = np.random.default_rng(seed)
    n, m = (int(width) for width in g.integers(4, 30, 2))
    left, right = (torch.from_numpy(g.integers(0, 3, (width, 2)).astype(np.float32)) for width in (n, m))
    problem = MatchingProblem(left, right, n_pairs=int(g.integers(1, min(n, m))))
    solution = CertifiedSolver().solve(problem)
    assert solution.objective == pytest.approx(best_with_pairs(distances(problem), problem.n_pairs), abs=1e-9)
    assert solution.gap == 0


@pytest.mark.parametrize("pairs", [1, 37, 150, 299, 300])
def test_fixed_pairs_at_size(pairs: int) -> None:
    problem = problem_of("outliers", 300, 310, 12, seed=4)
    solution = CertifiedSolver().solve(replace(problem, n_pairs=pairs))
    assert solution.objective == pytest.approx(best_with_pairs(distances(problem), pairs), rel=1e-11)
    assert solution.gap <= 1e-9


def test_the_planted_features_are_found_and_the_new_ones_rejected() -> None:
    g = torch.Generator().manual_seed(0)
    shared, new_a, new_b = (torch.randn(n, 32, generator=g) for n in (80, 20, 30))
    left = torch.cat([shared, new_a])
    right = torch.cat([new_b, shared + 0.05 * torch.randn(80, 32, generator=g)])
    solution = CertifiedSolver().solve(MatchingProblem(left, right, rejection_cost=8.0))
    assert solution.permutation.indices.tolist() == [30 + i for i in range(80)] + [-1] * 20


@pytest.mark.parametrize(
    "limit", [{"rejection_cost": math.inf}, {"rejection_cost": "3"}, {"n_pairs": 1.5}, {"n_pairs": True}]
)
def test_limits_that_are_none(limit: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(limit))}="):
        match(random_sae(seed=1), random_sae(seed=2), **limit)
