"""Entropic transport against a plain Sinkhorn in float64, its limits, and its roundings."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from sae_match.matching import MatchingProblem
from sae_match.matching.baselines import SoftSolver
from sae_match.matching.baselines.soft import SoftRounding, squared_distances
from sae_match.matching.certified import CertifiedSolver


def problem(n: int, m: int, seed: int = 0) -> MatchingProblem:
    generator = torch.Generator().manual_seed(seed)
    return MatchingProblem(torch.randn(n, 5, generator=generator), torch.randn(m, 5, generator=generator))


def sinkhorn(cost: np.ndarray, strength: float) -> np.ndarray:
    """The textbook iteration, long enough to converge."""
    kernel = np.exp(-cost / strength)
    n, m = cost.shape
    v = np.ones(m)
    for _ in range(20_000):
        u = (1 / n) / (kernel @ v)
        v = (1 / m) / (kernel.T @ u)
    return np.asarray(u[:, None] * kernel * v)


@pytest.mark.parametrize(("n", "m"), [(30, 30), (20, 33), (33, 20), (1, 4)])
def test_plan_has_uniform_marginals_and_is_the_textbook_one(n: int, m: int) -> None:
    given = problem(n, m)
    solver = SoftSolver(regularization=0.1, marginal_error=1e-5)
    found = solver.transport(given)
    plan = found.log_plan.exp().double().numpy()
    assert plan.sum(axis=1) == pytest.approx(np.full(n, 1 / n), rel=1e-5)
    assert np.linalg.norm(plan.sum(axis=0) - 1 / m) * np.sqrt(m) <= 2e-5
    assert found.marginal_error <= 2e-5
    cost = ((given.left.double()[:, None] - given.right.double()[None]) ** 2).sum(dim=2).numpy()
    # torch's median of an even number of values is the lower one.
    median = np.sort(cost, axis=None)[(cost.size - 1) // 2]
    assert plan == pytest.approx(sinkhorn(cost, 0.1 * median), abs=1e-5)
    statistics = solver.solve(given).statistics
    assert statistics["transport_cost"] == pytest.approx(min(n, m) * float((plan * cost).sum()), rel=1e-4)


def test_transport_cost_falls_to_the_optimum_as_the_entropy_vanishes() -> None:
    given = problem(40, 40)
    optimum = CertifiedSolver().solve(given).objective
    costs = [
        SoftSolver(regularization=r, max_iterations=5000).solve(given).statistics["transport_cost"]
        for r in (1.0, 0.3, 0.1, 0.02)
    ]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] >= optimum * 0.999  # column sums are uniform to 0.1 % only
    assert costs[-1] == pytest.approx(optimum, rel=0.05)


def test_rounding_the_log_of_the_plan_is_the_exact_matching_and_of_the_plan_is_not() -> None:
    given = problem(60, 60, seed=3)
    exact = CertifiedSolver().solve(given).permutation.indices
    for regularization in (0.5, 0.1):
        log_plan = SoftSolver(regularization=regularization, rounding=SoftRounding.log_plan).solve(given)
        assert torch.equal(log_plan.permutation.indices, exact)
    soft = SoftSolver(regularization=0.5)
    rounded, plan = soft.solve(given), soft.transport(given).log_plan.exp().double().numpy()
    rows, columns = linear_sum_assignment(-plan)
    assert rounded.permutation.indices.tolist() == columns.tolist()
    assert rounded.statistics["mass_on_pairs"] == pytest.approx(plan[rows, columns].sum(), rel=1e-4)
    assert not torch.equal(rounded.permutation.indices, exact)


@pytest.mark.parametrize("rounding", list(SoftRounding))
def test_equal_features_everywhere(rounding: SoftRounding) -> None:
    solution = SoftSolver(rounding=rounding).solve(MatchingProblem(torch.ones(5, 2), torch.ones(7, 2)))
    assert sorted(set(solution.permutation.indices.tolist())) == sorted(solution.permutation.indices.tolist())
    assert solution.statistics["transport_cost"] == 0.0
    mostly = MatchingProblem(torch.ones(9, 1), torch.tensor([[1.0]] * 8 + [[3.0]]))
    assert SoftSolver(rounding=rounding).solve(mostly).objective == 4.0


def test_too_few_iterations_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        solution = SoftSolver(regularization=0.01, max_iterations=3).solve(problem(50, 50))
    assert "raise solver.max_iterations" in caplog.text
    assert solution.statistics["marginal_error"] > 1e-3
    assert solution.statistics["iterations"] == 3


def test_squared_distances_far_from_the_origin() -> None:
    left, right = (1000 + torch.randn(8, 3, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    expected = ((left.double()[:, None] - right.double()[None]) ** 2).sum(dim=2)
    assert torch.allclose(squared_distances(left, right).double(), expected, rtol=1e-5)
