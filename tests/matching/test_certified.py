"""The certified solver against scipy, brute force and its own certificate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from sae_match import UserError
from sae_match.assignment import lazy as lazy_module
from sae_match.assignment import workspace as workspace_module
from sae_match.matching import MatchingProblem
from sae_match.matching.certified import CertifiedSolver
from sae_match.matching.solution import Solution
from tests.matching.problems import KINDS, distances, least_optimum, optimum, problem_of

kinds = st.sampled_from(KINDS)
seeds = st.integers(0, 10**6)


def check_optimal(problem: MatchingProblem, solution: Solution) -> None:
    """Complete, as cheap as scipy's optimum, and proved so."""
    best = optimum(distances(problem))
    scale = max(best, float(problem.left.square().sum() + problem.right.square().sum()), 1e-30)
    assert len(solution.permutation.matched) == min(problem.shape)
    assert abs(solution.objective - best) <= 1e-11 * scale
    assert solution.lower_bound <= best + solution.tolerance + 1e-12 * scale
    assert solution.objective - solution.lower_bound <= 1e-11 * scale
    assert solution.statistics["stopped_early"] == 0


@settings(max_examples=300)
@given(kind=kinds, n=st.integers(1, 24), m=st.integers(1, 24), d=st.integers(1, 6), seed=seeds)
def test_optimal_on_every_kind_of_problem(kind: str, n: int, m: int, d: int, seed: int) -> None:
    problem = problem_of(kind, n, m, d, seed)
    check_optimal(problem, CertifiedSolver().solve(problem))


@settings(max_examples=100)
@given(kind=kinds, n=st.integers(1, 24), m=st.integers(1, 24), seed=seeds, block=st.integers(1, 9))
def test_one_answer_for_any_block_size_cache_and_thread_count(kind: str, n: int, m: int, seed: int, block: int) -> None:
    problem = problem_of(kind, n, m, 3, seed)
    expected = CertifiedSolver().solve(problem)
    threads = torch.get_num_threads()
    try:
        for count, cache in [(1, True), (2, True), (2, False)]:
            torch.set_num_threads(count)
            found = CertifiedSolver(block_rows=block, cache=cache).solve(problem)
            assert torch.equal(found.permutation.indices, expected.permutation.indices)
            assert found.objective == expected.objective
            assert found.lower_bound == expected.lower_bound
    finally:
        torch.set_num_threads(threads)


@settings(max_examples=100)
@given(kind=st.sampled_from(["integers", "duplicates", "constant"]), n=st.integers(1, 5), extra=st.integers(0, 2),
       d=st.integers(1, 2), seed=seeds)  # fmt: skip
def test_ties_go_to_the_least_permutation(kind: str, n: int, extra: int, d: int, seed: int) -> None:
    problem = problem_of(kind, n, n + extra, d, seed)
    expected = least_optimum(distances(problem))
    assert CertifiedSolver().solve(problem).permutation.indices.tolist() == expected


@given(kind=kinds, n=st.integers(1, 16), m=st.integers(1, 16), seed=seeds)
def test_the_two_directions_cost_the_same(kind: str, n: int, m: int, seed: int) -> None:
    problem = problem_of(kind, n, m, 4, seed)
    there = CertifiedSolver().solve(problem)
    back = CertifiedSolver().solve(MatchingProblem(problem.right, problem.left))
    assert there.objective == pytest.approx(back.objective, rel=1e-12)
    if kind in ("gaussian", "outliers") and n == m:  # no ties: one optimum
        assert torch.equal(there.permutation.inverse().indices, back.permutation.indices)


@given(kind=st.sampled_from(["gaussian", "outliers", "hubs"]), n=st.integers(2, 16), seed=seeds)
def test_a_permuted_side_permutes_the_answer(kind: str, n: int, seed: int) -> None:
    problem = problem_of(kind, n, n, 4, seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    shuffled = CertifiedSolver().solve(MatchingProblem(problem.left, problem.right[order]))
    assert torch.equal(order[shuffled.permutation.indices], CertifiedSolver().solve(problem).permutation.indices)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "m"), [(400, 400), (397, 400), (500, 230), (300, 640)])
def test_lists_are_exhausted_and_remade_without_losing_the_optimum(kind: str, n: int, m: int) -> None:
    problem = problem_of(kind, n, m, 24, seed=n + m)
    check_optimal(problem, CertifiedSolver().solve(problem))


@pytest.mark.parametrize("kind", ["outliers", "hubs", "gaussian"])
def test_short_lists_and_no_auction_still_reach_the_optimum(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is left to the shortest paths, on lists of two."""
    monkeypatch.setattr(workspace_module, "LIST_LENGTH", 2)
    monkeypatch.setattr(workspace_module, "LONG_LIST_LENGTH", 2)
    monkeypatch.setattr(lazy_module.LazyAssignment, "auction_rounds", lambda self: None)
    monkeypatch.setattr(lazy_module, "VISITS", 1)
    for n, m, cache in [(150, 150, True), (150, 150, False), (140, 150, True)]:
        problem = problem_of(kind, n, m, 5, seed=3)
        solution = CertifiedSolver(cache=cache).solve(problem)
        check_optimal(problem, solution)
        assert solution.statistics["augmenting_paths"] > 0


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e-3, 1e6, 1e17])
def test_extreme_magnitudes_are_rescaled_without_loss(scale: float) -> None:
    problem = problem_of("gaussian", 40, 40, 6, seed=5)
    scaled = MatchingProblem(problem.left * scale, problem.right * scale)
    solution = CertifiedSolver().solve(scaled)
    expected = linear_sum_assignment(distances(MatchingProblem(problem.left, problem.right)))[1]
    assert solution.permutation.indices.tolist() == expected.tolist()
    assert solution.gap <= 1e-9


def test_zero_features_everywhere() -> None:
    solution = CertifiedSolver().solve(MatchingProblem(torch.zeros(5, 3), torch.zeros(7, 3)))
    assert solution.permutation.indices.tolist() == [0, 1, 2, 3, 4]
    assert solution.objective == solution.lower_bound == solution.gap == 0.0


def test_a_time_limit_leaves_a_complete_permutation_and_an_honest_gap() -> None:
    problem = problem_of("outliers", 300, 320, 8, seed=1)
    best = optimum(distances(problem))
    hurried = CertifiedSolver(time_limit_s=0.0).solve(problem)
    assert hurried.statistics["stopped_early"] == 1
    assert len(hurried.permutation.matched) == 300
    assert hurried.objective >= best * (1 - 1e-12)
    assert hurried.lower_bound <= best + hurried.tolerance
    assert hurried.gap > 1e-3


@pytest.mark.parametrize("phase", ["auction_rounds", "finish"])
def test_stopping_in_any_phase_keeps_a_valid_bound(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: object) -> None:
        raise workspace_module.Stopped("test")

    monkeypatch.setattr(lazy_module.LazyAssignment, phase, stop)
    for rejection in (None, 8.0):
        problem = replace(problem_of("gaussian", 120, 130, 6, seed=2), rejection_cost=rejection)
        cost = distances(problem)
        best = optimum(cost) if rejection is None else optimum(np.minimum(cost, rejection))
        solution = CertifiedSolver().solve(problem)
        assert 0 < solution.lower_bound <= best + solution.tolerance
        assert solution.objective >= best * (1 - 1e-12)
        assert solution.gap < 1


def test_a_limit_that_falls_into_the_proof_keeps_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_match.assignment import proof as proof_module

    def late(lazy: object, verify: bool) -> None:
        raise workspace_module.Stopped("test")

    monkeypatch.setattr(proof_module, "prove", late)
    problem = problem_of("gaussian", 120, 130, 6, seed=2)
    solution = CertifiedSolver().solve(problem)
    assert solution.statistics["stopped_early"] == 1
    assert solution.objective == pytest.approx(optimum(distances(problem)), rel=1e-11)
    assert 0 < solution.lower_bound <= solution.objective


def test_infinity_and_nan_are_refused() -> None:
    for bad in (float("nan"), float("inf")):
        right = torch.randn(6, 2)
        right[3, 1] = bad
        with pytest.raises(UserError, match="NaN or infinity"):
            CertifiedSolver().solve(MatchingProblem(torch.randn(6, 2), right))


def test_an_empty_side_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to match"):
        CertifiedSolver().solve(MatchingProblem(torch.empty(0, 2), torch.randn(6, 2)))


def test_memory_is_checked_before_anything_is_allocated() -> None:
    solver = CertifiedSolver(memory_limit_gib=1.0)
    assert solver.use_cache(16_384, 16_384, 100)
    assert not solver.use_cache(32_768, 32_768, 100)  # the cache alone takes 2 GiB
    with pytest.raises(UserError, match="memory_limit_gib"):
        solver.check_memory(1_000_000, 1_000_000, 2304)
    with pytest.raises(UserError, match="solver=certified needs"):
        replace(solver, cache=True).check_memory(32_768, 32_768, 100)


def test_lists_that_outgrow_memory_stop_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    # Columns that are all alike: every row, each unlike the others, wants to list them all.
    problem = MatchingProblem(problem_of("gaussian", 600, 1, 3, seed=0).left, torch.ones(600, 3))
    monkeypatch.setattr(CertifiedSolver, "_most_slots", lambda self, n, m, d, cached: 0)
    solution = CertifiedSolver().solve(problem)
    assert solution.statistics["stopped_early"] == 1
    assert len(solution.permutation.matched) == 600


def test_lists_without_a_cache_may_grow_where_the_cache_would_never_fit() -> None:
    solver = CertifiedSolver(memory_limit_gib=0.05)
    assert solver.bytes_with(400, 400, 6, cached=False) < solver.memory()
    first = 2 * 400 * (workspace_module.slots_per_row(False) + 1) + 8 * 400
    assert solver._most_slots(400, 400, 6, False) > 2 * first
    narrow = CertifiedSolver(memory_limit_gib=0.0)  # even then there is room for the first lists
    assert narrow._most_slots(400, 400, 6, False) == first


def test_a_product_in_reduced_precision_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b: exact(a.bfloat16(), b.bfloat16()).float())
    with pytest.raises(UserError, match="set_float32_matmul_precision"):
        CertifiedSolver().solve(problem_of("gaussian", 64, 64, 32, seed=0))
