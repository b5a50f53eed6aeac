"""Unbalanced transport against POT, closed forms, and features without a counterpart; soft matching of similarities."""

from __future__ import annotations

import logging

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_match import UserError
from sae_match.matching import UNMATCHED, MatchingProblem
from sae_match.matching.baselines import SoftSolver, UnbalancedTransport
from sae_match.matching.baselines.soft import costs_of
from sae_match.matching.problem import SimilarityProblem, unit_rows


def problem(n: int, m: int, seed: int = 0) -> MatchingProblem:
    generator = torch.Generator().manual_seed(seed)
    return MatchingProblem(torch.randn(n, 5, generator=generator), torch.randn(m, 5, generator=generator))


def plan_of(solver: UnbalancedTransport, given: MatchingProblem | SimilarityProblem) -> np.ndarray:
    found = solver.transport(given)
    n, m = found.cost.shape
    return np.asarray(((found.f[:, None] + found.g - found.cost).exp() / (n * m)).double().numpy())


@pytest.mark.parametrize(("n", "m"), [(30, 30), (20, 33), (33, 20)])
@pytest.mark.parametrize(("penalty", "strength"), [(0.5, 0.05), (2.0, 0.2), (0.05, 0.1)])
def test_the_plan_is_pots(n: int, m: int, penalty: float, strength: float) -> None:
    given = problem(n, m)
    solver = UnbalancedTransport(marginal_penalty=penalty, regularization=strength, tolerance=1e-7)
    cost = costs_of(given).double().numpy()
    unit = np.sort(cost, axis=None)[(cost.size - 1) // 2]
    a, b = np.full(n, 1 / n), np.full(m, 1 / m)
    expected = ot.unbalanced.sinkhorn_unbalanced(
        a, b, cost, strength * unit, penalty * unit, reg_type="kl", numItermax=100_000, stopThr=1e-12
    )
    assert plan_of(solver, given) == pytest.approx(expected, abs=1e-6 / n)
    assert solver.transport(given).mass().numpy() == pytest.approx(n * expected.sum(axis=1), abs=1e-4)
    found = solver.solve(given)
    kept = n * expected.sum(axis=1) >= 0.5
    assert found.permutation.indices.tolist() == np.where(kept, expected.argmax(axis=1), UNMATCHED).tolist()
    assert found.statistics["without_partner"] == n - kept.sum()


@pytest.mark.parametrize("n", [1, 2])
@settings(max_examples=20)
@given(penalty=st.floats(0.05, 3.0), strength=st.floats(0.02, 0.5))
def test_pairs_far_from_all_others_keep_what_the_formula_says(n: int, penalty: float, strength: float) -> None:
    """One or two pairs at a distance of 1, which is the (lower) median as well; all else is far away."""
    left = 1000.0 * torch.arange(n)[:, None]
    solver = UnbalancedTransport(marginal_penalty=penalty, regularization=strength, tolerance=1e-7)
    mass = solver.transport(MatchingProblem(left, left + 1.0)).mass().numpy()
    kept = np.exp(-(1 + strength * np.log(n)) / (2 * penalty + strength))
    assert mass == pytest.approx(np.full(n, kept), rel=1e-3)


def test_a_feature_without_a_counterpart_is_left_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    left = unit_rows(torch.randn(30, 64, generator=generator))
    right = unit_rows(left[:25] + 0.04 * torch.randn(25, 64, generator=generator))
    split = unit_rows(left[:1] + 0.04 * torch.randn(1, 64, generator=generator))
    solver = UnbalancedTransport()
    expected = [*range(25), *[UNMATCHED] * 5, 0]
    given = MatchingProblem(torch.cat([left, split]), right)
    for one in (given, SimilarityProblem(given.left @ given.right.T)):
        found = (solver.solve if isinstance(one, MatchingProblem) else solver.solve_similarity)(one)  # type: ignore[operator]
        assert found.permutation.indices.tolist() == expected
        assert found.permutation.many_to_one
        assert (found.statistics["without_partner"], found.statistics["distinct_partners"]) == (5, 25)


def test_a_row_that_is_far_from_everything_does_not_disturb_the_others() -> None:
    """Its kernel exp(-cost / eps) is 0 in any floating-point format."""
    given = problem(20, 20)
    outlier = MatchingProblem(torch.cat([given.left, torch.full((1, 5), 1e4)]), given.right)
    solver = UnbalancedTransport(marginal_penalty=5.0)
    found = solver.solve(outlier).permutation.indices
    assert int(found[-1]) == UNMATCHED and (found[:-1] >= 0).all()


@pytest.mark.parametrize("solver", [SoftSolver(), UnbalancedTransport(marginal_penalty=1.0)])
def test_cosines_are_matched_like_unit_rows(solver: SoftSolver | UnbalancedTransport) -> None:
    rows = [unit_rows(side) for side in (problem(20, 26).left, problem(20, 26).right)]
    by_rows = solver.solve(MatchingProblem(*rows))
    by_matrix = solver.solve_similarity(SimilarityProblem(rows[0] @ rows[1].T))
    assert by_matrix.permutation.indices.tolist() == by_rows.permutation.indices.tolist()
    assert by_matrix.objective == pytest.approx(by_rows.objective, rel=1e-5)
    with pytest.raises(UserError, match="must be finite"):
        solver.solve_similarity(SimilarityProblem(torch.full((2, 2), torch.nan)))


@pytest.mark.parametrize("solver", [SoftSolver(), UnbalancedTransport()])
def test_similarities_of_any_size_have_partners(solver: SoftSolver | UnbalancedTransport) -> None:
    """As folded virtual weights: costs 2 - 2 S below 0."""
    similarity = (
        torch.randn(15, 15, generator=torch.Generator().manual_seed(0)) + 60 * torch.eye(15)[torch.arange(15).roll(3)]
    )
    found = solver.solve_similarity(SimilarityProblem(similarity))
    assert found.permutation.indices.tolist() == similarity.argmax(dim=1).tolist()
    assert all(np.isfinite(list(found.statistics.values())))


def test_the_order_of_features_means_nothing() -> None:
    given, order = problem(25, 30), torch.randperm(30, generator=torch.Generator().manual_seed(1))
    solver = UnbalancedTransport()
    plain = solver.solve(given).permutation.indices
    other = solver.solve(MatchingProblem(given.left, given.right[order])).permutation.indices
    assert torch.equal(torch.where(other < 0, other, order[other]), plain)
    assert 0 < int((plain >= 0).sum()) < 25


def test_too_few_iterations_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        UnbalancedTransport(max_iterations=2).solve(problem(30, 30))
    assert "raise solver.max_iterations" in caplog.text
