"""The proof itself: duals checked in float64 over all pairs, tampering noticed, ties resolved."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from sae_match.assignment import lazy as lazy_module
from sae_match.assignment.grid import grid_problem, row_classes
from sae_match.assignment.lazy import LazyAssignment
from sae_match.assignment.list_kernels import dot, kth_least
from sae_match.assignment.products import NumpyProduct
from sae_match.assignment.proof import dual_bound, exact_duals, prove, row_costs, verified
from sae_match.assignment.rows import FactorRows
from sae_match.assignment.ties import TightPairs, canonical
from sae_match.matching import MatchingProblem
from sae_match.matching.certified import CertifiedSolver
from tests.matching.problems import KINDS, distances, optimum, problem_of


def solved(problem: MatchingProblem, cached: bool = True) -> LazyAssignment:
    grid = grid_problem(problem.left.numpy(), problem.right.numpy(), NumpyProduct, threads=2)
    similarity = FactorRows(grid.product, cached, 64, 2)
    lazy = LazyAssignment(grid.costs, grid.row_cost, similarity)
    assert lazy.run() is None
    return lazy


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "m"), [(200, 200), (150, 200)])
def test_duals_are_feasible_for_every_pair_in_float64(kind: str, n: int, m: int) -> None:
    problem = problem_of(kind, n, m, 16, seed=7)
    lazy = solved(problem)
    dual = exact_duals(lazy) / lazy.costs.unit
    price = lazy.prices.price / lazy.costs.unit
    cost = distances(problem) - problem.left.double().square().sum(dim=1).numpy()[:, None]
    tolerance = 1e-11 * float(np.abs(cost).max())
    reduced = cost - dual[:, None] - price[None, :]
    assert reduced.min() >= -tolerance
    assert np.abs(reduced[np.arange(n), lazy.held.partner]).max() <= tolerance
    # Unmatched columns carry the highest price, so the duals of the enlarged square problem add up to the cost.
    unmatched = np.setdiff1d(np.arange(m), lazy.held.partner)
    assert (price[unmatched] == price.max()).all()
    assert dual_bound(lazy, exact_duals(lazy)) == sum(row_costs(lazy, lazy.held.partner))


@pytest.mark.parametrize("cached", [True, False])
def test_the_final_pass_finds_an_infeasible_dual_wherever_it_is(cached: bool) -> None:
    lazy = solved(problem_of("gaussian", 120, 120, 8, seed=1), cached)
    dual = exact_duals(lazy)
    assert np.array_equal(verified(lazy, dual), dual)
    for row in (0, 63, 64, 119):
        wrong = dual.copy()
        wrong[row] += 1  # one grid step too high
        proven = verified(lazy, wrong)
        assert proven[row] == dual[row]
        assert np.array_equal(np.delete(proven, row), np.delete(dual, row))


def test_a_pair_hidden_from_the_lists_is_found_by_the_final_pass() -> None:
    lazy = solved(problem_of("gaussian", 120, 120, 8, seed=1))
    lazy.prices.price[17] += int(0.5 * lazy.costs.unit)  # column 17 now undercuts many rows' duals
    lazy.prices.offset[17] += 0.5
    lazy.lists.bound[:] = 1 << 62
    proof = prove(lazy, verify=True)
    assert proof.deficit is not None and proof.deficit > 0


def test_an_exchange_of_equal_cost_is_resolved_to_the_least() -> None:
    # Rows 0, 1, 2 hold columns 2, 0, 1 and may be turned round in either direction; row 3 has no choice.
    tight = TightPairs(
        np.array([0, 0, 1, 1, 2, 2], np.int32), np.array([0, 1, 1, 2, 2, 0], np.int32), np.zeros(5, np.bool_)
    )
    partner, choices = canonical(np.array([2, 0, 1, 4], np.int32), tight)
    assert partner.tolist() == [0, 1, 2, 4]
    assert choices == 3


def test_a_column_left_over_can_be_part_of_the_exchange() -> None:
    # Row 0 holds column 3 and could as well have column 1, which is left over; both may stay unmatched.
    tight = TightPairs(np.array([0], np.int32), np.array([1], np.int32), np.array([False, True, False, True]))
    assert canonical(np.array([3], np.int32), tight)[0].tolist() == [1]
    # If column 3 may not stay unmatched, there is no choice.
    fixed = TightPairs(tight.rows, tight.columns, np.array([False, True, False, False]))
    assert canonical(np.array([3], np.int32), fixed)[0].tolist() == [3]


@pytest.mark.parametrize("d", [1, 7, 127, 128, 129, 1000])
def test_inner_products_agree_with_float64(d: int) -> None:
    g = torch.Generator().manual_seed(d)
    a, b = torch.randn(d, generator=g), torch.randn(d, generator=g)
    assert dot(a.numpy(), b.numpy()) == pytest.approx(float(a.double() @ b.double()), rel=1e-12, abs=1e-13)


@given(values=st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=40), data=st.data())
def test_selection_agrees_with_sorting(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(0, len(values) - 1))
    assert kth_least(np.array(values, np.float32), k) == np.float32(sorted(values)[k])


def test_a_deadline_in_the_past_stops_before_the_product_is_complete() -> None:
    problem = problem_of("gaussian", 300, 300, 8, seed=1)
    grid = grid_problem(problem.left.numpy(), problem.right.numpy(), NumpyProduct, threads=1)
    similarity = FactorRows(grid.product, True, 64, 1)
    lazy = LazyAssignment(grid.costs, grid.row_cost, similarity, deadline=time.monotonic() - 1)
    assert lazy.run() is not None
    assert similarity.rows_computed == 64


def test_rows_that_are_equal_share_a_class_and_the_answer_stays_the_least() -> None:
    g = torch.Generator().manual_seed(2)
    rows = torch.randn(5, 4, generator=g)[torch.tensor([0, 1, 0, 2, 1, 0, 3])]
    rows = torch.cat([rows, -rows[6:]])
    rows[6] = -rows[3]  # of the same norm, but another row
    rows[7] = -rows[3]
    norms = np.linalg.norm(rows.double().numpy(), axis=1)
    assert row_classes(rows.numpy(), norms).tolist() == [0, 1, 0, 3, 1, 0, 6, 6]


def test_equal_features_are_priced_once() -> None:
    problem = problem_of("planted", 600, 600, 8, seed=3)
    g = torch.Generator().manual_seed(0)
    for side in (problem.left, problem.right):
        side[torch.randperm(600, generator=g)[:300]] = 0
    solution = CertifiedSolver().solve(problem)
    assert solution.gap == 0
    assert solution.objective == pytest.approx(optimum(distances(problem)), rel=1e-12)
    # The 90,000 pairs of dead features have one cost, and each of their rows would ask for it.
    assert solution.statistics["exact_pairs"] < 20_000
    # Dead features take the dead columns that are left in ascending order.
    dead = np.flatnonzero((problem.left == 0).all(1).numpy())
    taken = solution.permutation.indices.numpy()[dead]
    among = taken[(problem.right[taken] == 0).all(1).numpy()]
    assert (np.diff(among) > 0).all()


@given(seed=st.integers(0, 10**6), n=st.integers(2, 40), m=st.integers(2, 40))
@example(seed=0, n=300, m=300)  # more columns than first lists hold: one list is lengthened for all its rows
@example(seed=1, n=250, m=300)
def test_rows_that_share_a_list_and_are_passed_over_find_the_same(seed: int, n: int, m: int) -> None:
    g = torch.Generator().manual_seed(seed)
    n, m = sorted((n, m))
    left, right = (torch.randint(0, 3, (width, 1), generator=g).float() for width in (n, m))
    left[::5] = torch.rand(len(left[::5]), 1, generator=g)  # some rows are like no other
    grid = grid_problem(left.numpy(), right.numpy(), NumpyProduct, threads=1)
    answers = []
    for classes in (row_classes(grid.costs.left, grid.costs.left_norm), None):
        similarity = FactorRows(grid.product, True, 64, 1)
        lazy = LazyAssignment(grid.costs, grid.row_cost, similarity, row_class=classes)
        assert lazy.run() is None
        proof = prove(lazy, verify=True)
        assert proof.deficit == 0
        answers.append(proof.partner.tolist())
    assert answers[0] == answers[1]


def test_calls_shrink_when_they_take_long_and_grow_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 10.0, 20.0, 20.0, 20.001])
    monkeypatch.setattr(lazy_module.time, "perf_counter", lambda: next(clock))
    size = lazy_module.CallSize(2048)
    size.now = 64
    sizes = []
    for _ in range(3):
        with size.timed():
            pass
        sizes.append(size.now)
    assert sizes == [16, 4, 8]


def test_a_time_limit_is_kept_where_every_cost_ties() -> None:
    left, right = torch.ones(700, 8), torch.randn(700, 8, generator=torch.Generator().manual_seed(0))
    CertifiedSolver().solve(MatchingProblem(left[:40], right[:40]))  # compile
    started = time.process_time()
    solution = CertifiedSolver(time_limit_s=0.2).solve(MatchingProblem(left, right))
    assert time.process_time() - started < 2.0
    assert len(solution.permutation.matched) == 700
