"""Exactness whatever the magnitudes, against rational arithmetic: no tolerance anywhere in this file."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sae_match.assignment.exact_numbers import as_integers, from_limbs, squares, to_limbs
from sae_match.assignment.grid import is_wide, row_norms
from sae_match.assignment.refine import ExactProblem, exact_factors, solve_exactly
from sae_match.matching import MatchingProblem
from sae_match.matching.certified import CertifiedSolver
from sae_match.matching.dense import DenseSolver
from sae_match.matching.permutation import UNMATCHED

seeds = st.integers(0, 10**6)
Costs = list[list[Fraction]]


def rational_costs(problem: MatchingProblem) -> Costs:
    """Squared distances of the float32 rows as they are."""
    left, right = ([[Fraction(x) for x in row] for row in side.tolist()] for side in (problem.left, problem.right))
    return [[sum(((x - y) ** 2 for x, y in zip(a, b, strict=True)), Fraction(0)) for b in right] for a in left]


def wide_problem(kind: str, n: int, m: int, d: int, decades: float, seed: int) -> MatchingProblem:
    """Rows whose norms spread over so many orders of magnitude, with ties where they are whole numbers."""
    g = np.random.default_rng(seed)

    def side(rows: int) -> Tensor:
        values = g.integers(-2, 3, (rows, d)).astype(float) if kind == "whole" else g.standard_normal((rows, d))
        scale = 10.0 ** g.uniform(-decades / 2, decades / 2, (rows, 1))
        if kind == "few":
            scale[g.random(rows) < 0.7] = 1
        elif kind == "whole":
            scale = 2.0 ** np.round(np.log2(scale))
        return torch.from_numpy((values * scale).astype(np.float32))

    return MatchingProblem(side(n), side(m))


def least_optimum(costs: Costs, rejection: Fraction | None = None) -> tuple[Fraction, list[int]]:
    """Least cost and the lexicographically least assignment of that cost, by trying all; no more rows than columns."""
    n, m = len(costs), len(costs[0])
    best: tuple[Fraction, list[int]] | None = None
    places = [*range(m), *([] if rejection is None else [m] * n)]
    for columns in sorted(set(itertools.permutations(places, n))):
        total = sum((rejection or Fraction(0)) if j == m else costs[i][j] for i, j in enumerate(columns))
        if best is None or total < best[0]:
            best = Fraction(total), list(columns)
    assert best is not None
    return best


@settings(max_examples=200)
@given(kind=st.sampled_from(["all", "few", "whole"]), n=st.integers(1, 5), extra=st.integers(0, 2),
       d=st.integers(1, 4), decades=st.sampled_from([0, 4, 8, 12, 20]), seed=seeds)  # fmt: skip
def test_the_least_optimum_over_twenty_orders_of_magnitude(
    kind: str, n: int, extra: int, d: int, decades: float, seed: int
) -> None:
    problem = wide_problem(kind, n, n + extra, d, decades, seed)
    cost, expected = least_optimum(rational_costs(problem))
    solution = CertifiedSolver().solve(problem)
    assert solution.permutation.indices.tolist() == expected
    assert solution.gap == 0
    assert solution.objective == pytest.approx(float(cost), rel=1e-12)
    exact = exact_factors(
        problem.left.numpy(), problem.right.numpy(), rejection_cost=None, cached=True, block_rows=3, threads=1
    )  # fmt: skip
    found = solve_exactly(exact)
    assert found.proof.partner.tolist() == expected
    assert found.proof.deficit == 0


def total(problem: MatchingProblem, indices: list[int]) -> Fraction:
    costs = rational_costs(problem)
    return sum((costs[i][j] for i, j in enumerate(indices) if j != UNMATCHED), Fraction(0))


@settings(max_examples=60)
@given(kind=st.sampled_from(["all", "few", "whole"]), n=st.integers(1, 4), m=st.integers(1, 5),
       decades=st.sampled_from([4, 12, 20]), share=st.floats(0, 1.2), seed=seeds)  # fmt: skip
def test_rejection_over_twenty_orders_of_magnitude(
    kind: str, n: int, m: int, decades: float, share: float, seed: int
) -> None:
    problem = wide_problem(kind, n, m, 2, decades, seed)
    costs = rational_costs(problem)
    rejection = share * float(np.median([float(c) for row in costs for c in row]))
    solution = CertifiedSolver().solve(replace(problem, rejection_cost=rejection))
    narrow = costs if n <= m else [list(column) for column in zip(*costs, strict=True)]
    best, _ = least_optimum(narrow, Fraction(rejection))
    indices = solution.permutation.indices.tolist()
    out = min(n, m) - len(solution.permutation.matched)
    found = total(problem, indices) + out * Fraction(rejection)
    if is_wide(*(row_norms(side.numpy(), 1) for side in (problem.left, problem.right))):
        assert found == best
    assert float(found - best) <= solution.tolerance
    assert solution.gap == 0 or solution.objective == 0


@settings(max_examples=40)
@given(kind=st.sampled_from(["all", "few", "whole"]), n=st.integers(1, 4), m=st.integers(1, 4),
       decades=st.sampled_from([0, 4, 12, 20]), data=st.data(), seed=seeds)  # fmt: skip
def test_so_many_pairs_over_twenty_orders_of_magnitude(
    kind: str, n: int, m: int, decades: float, data: st.DataObject, seed: int
) -> None:
    problem = wide_problem(kind, n, m, 2, decades, seed)
    pairs = data.draw(st.integers(1, min(n, m)))
    solution = CertifiedSolver().solve(replace(problem, n_pairs=pairs))
    costs = rational_costs(problem)
    best = min(
        sum((costs[i][j] for i, j in zip(rows, columns, strict=True)), Fraction(0))
        for rows in itertools.combinations(range(n), pairs)
        for columns in itertools.permutations(range(m), pairs)
    )
    found = total(problem, solution.permutation.indices.tolist())
    assert len(solution.permutation.matched) == pairs
    assert float(found - best) <= solution.tolerance
    assert solution.gap == 0
    if is_wide(*(row_norms(side.numpy(), 1) for side in (problem.left, problem.right))):
        assert found == best


@given(values=st.lists(st.integers(-(2**150), 2**150), min_size=1, max_size=9))
def test_limbs_hold_integers(values: list[int]) -> None:
    assert from_limbs(to_limbs(values, 6)) == values


@given(values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=12))
def test_squared_norms_of_any_float32_are_exact(values: list[float]) -> None:
    row = np.array([values], np.float32)
    assert squares(row, -298, 20) == [int(sum(Fraction(x) ** 2 for x in values) * 2**298)]
    assert as_integers(row[0].astype(np.float64), -149) == [int(Fraction(x) * 2**149) for x in values]


def planted(width: int, tiny: float) -> tuple[MatchingProblem, Tensor]:
    """Rows with counterparts at shuffled positions, but for one whose length is 1 / tiny on either side."""
    g = torch.Generator().manual_seed(5)
    left = torch.randn(width, 33, generator=g)
    order = torch.randperm(width, generator=g)
    right = (left + 0.1 * torch.randn(width, 33, generator=g))[order]
    left[7] /= tiny
    right[3] /= tiny
    return MatchingProblem(left, right), torch.argsort(order)


@pytest.mark.parametrize("tiny", [1e-4, 1e-7, 1e-10, 1e-15, 1e10])
def test_one_feature_of_another_magnitude_spoils_nothing(tiny: float, caplog: pytest.LogCaptureFixture) -> None:
    problem, counterpart = planted(300, tiny)
    with caplog.at_level(logging.WARNING):
        solution = CertifiedSolver().solve(problem)
    wrong = (solution.permutation.indices != counterpart).nonzero().flatten().tolist()
    assert len(wrong) <= 4 and solution.gap == 0
    assert ("feature 7 (norm" in caplog.text and "feature 3 (norm" in caplog.text) == (tiny < 1)
    for threads, block, cache in [(2, 7, True), (1, 64, False)]:
        torch.set_num_threads(threads)
        again = CertifiedSolver(block_rows=block, cache=cache).solve(problem)
        assert torch.equal(again.permutation.indices, solution.permutation.indices)
    torch.set_num_threads(1)


@pytest.mark.parametrize(("n", "m"), [(300, 300), (300, 340)])
def test_many_long_rows_that_compete_are_settled_at_the_first_level(n: int, m: int) -> None:
    g = torch.Generator().manual_seed(3)
    left, right = torch.randn(n, 9, generator=g), torch.randn(m, 9, generator=g)
    left[:30] *= 1e7
    right[20:60] *= 1e7
    solution = CertifiedSolver().solve(MatchingProblem(left, right))
    exact = exact_factors(left.numpy(), right.numpy(), rejection_cost=None, cached=True, block_rows=64, threads=1)
    found = solve_exactly(exact)
    assert found.proof.deficit == 0 and solution.gap == 0
    assert found.proof.partner.tolist() == solution.permutation.indices.tolist()
    assert exact.levels <= 2


@pytest.mark.parametrize("stop_at", ["auction_rounds", "finish", "prepare"])
def test_a_limit_leaves_a_complete_assignment_and_a_valid_bound(stop_at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_match.assignment.lazy import LazyAssignment
    from sae_match.assignment.workspace import Stopped

    def stop(self: object) -> None:
        raise Stopped("test")

    problem, _ = planted(60, 1e-3)
    best = CertifiedSolver().solve(problem)
    monkeypatch.setattr(LazyAssignment, stop_at, stop)
    found = CertifiedSolver().solve(problem)
    assert found.statistics["stopped_early"] == 1
    assert found.lower_bound <= best.objective * (1 + 1e-12) <= found.objective * (1 + 2e-12)
    assert found.gap > 0


def test_the_refinement_goes_on_in_python_or_on_finer_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the Python integers, the levels go down to the lowest bit and find the same."""
    from sae_match.assignment import refine

    for kind in ("few", "whole"):
        problem = wide_problem(kind, 40, 44, 3, 12, seed=1)
        levels: list[int] = []
        answers = []
        for most in (20_000_000, -1):
            monkeypatch.setattr(refine, "MOST_STEPS", most)
            exact: ExactProblem = exact_factors(
                problem.left.numpy(), problem.right.numpy(), rejection_cost=None, cached=True, block_rows=9, threads=1
            )
            found = solve_exactly(exact)
            assert found.proof.deficit == 0
            answers.append(found.proof.partner.tolist())
            levels.append(exact.levels)
        assert answers[0] == answers[1]
        assert levels[1] > levels[0]


def test_dense_reports_what_it_cannot_resolve(caplog: pytest.LogCaptureFixture) -> None:
    problem, _ = planted(120, 1e-8)
    with caplog.at_level(logging.WARNING):
        solution = DenseSolver().solve(problem)
    assert solution.gap > 0
    assert "solver=certified is exact here" in caplog.text and "feature 7 (norm" in caplog.text
    ordinary = wide_problem("all", 30, 30, 5, 0, seed=1)
    assert DenseSolver().solve(ordinary).gap == 0


def test_scipy_agrees_at_a_width_where_float64_resolves_the_costs() -> None:
    problem = wide_problem("few", 200, 220, 12, 8, seed=2)
    difference = problem.left.double()[:, None] - problem.right.double()[None]
    costs = difference.square().sum(dim=2).numpy()
    assert CertifiedSolver().solve(problem).permutation.indices.tolist() == linear_sum_assignment(costs)[1].tolist()
