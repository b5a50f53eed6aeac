"""Public test problems and hard families, with exact optima, through `assign` and `linear_sum_assignment`."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
from hypothesis import example, given
from hypothesis import strategies as st

from sae_match import UserError
from sae_match import assign as module
from sae_match.assign import assign, linear_sum_assignment
from tests.assignment.problems import FAMILIES, INFEASIBLE, PUBLIC, Matrix, best_of, family, inf, seeded

seeds = st.integers(0, 10**6)
sides = st.integers(1, 14)


def optimum(cost: Matrix) -> float:
    rows, columns = scipy.optimize.linear_sum_assignment(cost)
    return float(cost[rows, columns].sum())


def check(cost: Matrix, best: float) -> None:
    """Both functions, both ways up and both senses find the optimum; the duals prove it with nothing left over."""
    for matrix in (cost, cost.T):
        for sign in (1, -1):
            rows, columns = linear_sum_assignment(sign * matrix, maximize=sign < 0)
            assert rows.dtype == columns.dtype == np.intp
            assert (np.diff(rows) > 0).all() and len(set(columns.tolist())) == len(rows) == min(cost.shape)
            assert matrix[rows, columns].sum() == best
            found = assign(cost=matrix) if sign > 0 else assign(similarity=-matrix)
            assert sign * found.objective == sign * found.bound == best
            assert found.gap == 0 and found.stopped is None
            assert (np.flatnonzero(found.columns >= 0) == rows).all() or len(matrix) > matrix.shape[1]
            matched = np.flatnonzero(found.columns >= 0)
            assert matrix[matched, found.columns[matched]].sum() == best
            assert len(set(found.columns[matched].tolist())) == len(matched) == min(cost.shape)
            assert found.u is not None and found.v is not None
            slack = matrix - sign * (found.u[:, None] + found.v[None, :])
            assert slack.min() >= 0 and (slack[matched, found.columns[matched]] == 0).all()
            wider = sign * (found.u if len(found.u) > len(found.v) else found.v)
            assert cost.shape[0] == cost.shape[1] or wider.max() <= 0


@pytest.mark.parametrize(("cost", "best"), PUBLIC)
def test_matrices_of_other_solvers_tests(cost: list[list[float]], best: float) -> None:
    check(np.array(cost, np.float64), best)


@pytest.mark.parametrize(
    ("cost", "best"),
    [(seeded(False), 198), (seeded(True), 11399), (seeded(True, inf), 11406), (seeded(True, 2.0**31 - 1), 11406)],
)
def test_seeded_matrices_with_published_optima(cost: Matrix, best: float) -> None:
    check(cost, best)


@pytest.mark.parametrize("cost", INFEASIBLE)
def test_what_cannot_be_assigned_is_refused(cost: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="cost matrix is infeasible"):
        linear_sum_assignment(cost)
    with pytest.raises(UserError, match="every assignment has a forbidden pair"):
        assign(cost=cost)


def test_costs_of_very_different_sizes() -> None:
    """lapx issue 20, and lap's endless row reduction."""
    cost = np.full((11, 12), 1e6)
    np.fill_diagonal(cost, [0.0057, *(0.01 * (i + 1) for i in range(1, 11))])
    for dtype in (np.float32, np.float64):
        assert assign(cost=cost.astype(dtype)).columns.tolist() == list(range(11))
    loop = np.full((7, 3), 1000.0)
    rows, columns = [0, 0, 1, 1, 2, 2, 5, 5, 6, 6], [0, 1, 0, 1, 1, 2, 0, 1, 0, 1]
    loop[rows, columns] = [
        2.593883482138951146e-01, 3.080381437461217620e-01, 1.976243020727339317e-01, 2.462740976049606068e-01,
        4.203993396282833528e-01, 4.286184525458427985e-01, 1.706431415909629434e-01, 2.192929371231896185e-01,
        2.117769622802734286e-01, 2.604267578125001315e-01,
    ]  # fmt: skip
    found = assign(cost=loop)
    assert found.objective == pytest.approx(0.8455356917416, rel=1e-12)
    assert found.gap < 1e-12


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 7), (60, 60), (60, 75), (150, 150)])
def test_families(kind: str, n: int, m: int) -> None:
    cost = family(kind, n, m, seed=n + m)
    check(cost, optimum(cost))


@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind not in ("sparse", "near ties", "offsets")])
@pytest.mark.parametrize(("n", "m"), [(1, 2), (40, 40), (40, 47), (150, 150)])
def test_families_on_candidate_lists(kind: str, n: int, m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of large float32 matrices."""
    cost = family(kind, n, m, seed=n + m).astype(np.float32)
    monkeypatch.setattr(module, "DENSE_ENTRIES", 0)
    found = assign(cost=cost)
    assert found.objective == optimum(cost.astype(np.float64))
    assert found.gap == 0
    if kind == "big M" or n == 1:  # one grid does not resolve these: proved in exact numbers
        return
    assert found.u is not None and found.v is not None
    assert (cost.astype(np.float64) - found.u[:, None] - found.v[None, :]).min() >= 0


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("lists", [False, True])
def test_every_number_of_pairs(kind: str, lists: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    cost = family(kind, 4, 5, seed=3)
    if lists:
        cost = cost.astype(np.float32).astype(np.float64)
        monkeypatch.setattr(module, "DENSE_ENTRIES", 0)
    for pairs in range(1, 5):
        best = best_of(cost, pairs)
        for matrix in (cost, cost.T):
            found = assign(cost=matrix.astype(np.float32 if lists else np.float64), n_pairs=pairs)
            matched = np.flatnonzero(found.columns >= 0)
            assert len(matched) == pairs
            assert matrix[matched, found.columns[matched]].sum() == found.objective == found.bound == best
            assert found.u is None and found.v is None and found.gap == 0


@given(kind=st.sampled_from(FAMILIES), n=st.integers(1, 5), m=st.integers(1, 5), seed=seeds, share=st.integers(-1, 9))
def test_rejection_is_the_best_of_all_partial_assignments(kind: str, n: int, m: int, seed: int, share: int) -> None:
    cost = family(kind, min(n, m), max(n, m), seed)
    rejection = float(np.rint(np.sort(cost[np.isfinite(cost)])[-1] * share / 8))
    best = min(best_of(cost, k) + rejection * (min(n, m) - k) for k in range(min(n, m) + 1))
    for matrix in (cost, cost.T):
        found = assign(cost=matrix, rejection_cost=rejection)
        matched = np.flatnonzero(found.columns >= 0)
        paid = matrix[matched, found.columns[matched]]
        assert found.objective == found.bound == best == paid.sum() + rejection * (min(n, m) - len(matched))
        assert (paid <= rejection).all()
        assert found.u is not None and found.v is not None
        assert (np.minimum(matrix, rejection) - found.u[:, None] - found.v[None, :]).min() >= 0
    mirrored = assign(similarity=-cost, rejection_cost=rejection)
    assert mirrored.objective == mirrored.bound == -best or mirrored.objective == best == 0


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.float16, np.float32, np.float64, np.bool_])
@pytest.mark.parametrize("order", ["C", "F", "strided", "read only"])
def test_types_and_layouts(dtype: type, order: str) -> None:
    cost = np.random.default_rng(0).integers(0, 100, (30, 40)).astype(dtype)
    best = optimum(cost.astype(np.float64))
    if order == "strided":
        cost = np.repeat(np.repeat(cost, 2, axis=0), 2, axis=1)[::2, ::2]
    else:
        cost = np.array(cost, order="F" if order == "F" else "C")
        cost.flags.writeable = order != "read only"
    before = cost.copy()
    rows, columns = linear_sum_assignment(cost)
    assert cost[rows, columns].sum(dtype=np.float64) == assign(cost=cost).objective == best
    assert (cost == before).all()


@given(kind=st.sampled_from(FAMILIES), n=sides, m=sides, seed=seeds)
def test_shifts_of_rows_and_columns_move_the_optimum_with_them(kind: str, n: int, m: int, seed: int) -> None:
    cost = family(kind, min(n, m), max(n, m), seed)
    best = optimum(cost)
    check(cost, best)
    g = np.random.default_rng(seed)
    rows, columns = g.integers(-99, 99, (len(cost), 1)), g.integers(-99, 99, (1, cost.shape[1]))
    assert assign(cost=cost + rows).objective == best + rows.sum()
    if n == m:
        assert assign(cost=cost + columns).objective == best + columns.sum()
    order, across = g.permutation(len(cost)), g.permutation(cost.shape[1])
    assert assign(cost=cost[order][:, across]).objective == best
    assert assign(cost=4.0 * cost).objective == 4.0 * best


@given(n=sides, m=sides, seed=seeds, decades=st.integers(0, 12))
@example(n=120, m=120, seed=0, decades=0)
@example(n=90, m=120, seed=1, decades=6)
def test_real_numbers_are_as_exact_as_float64(n: int, m: int, seed: int, decades: int) -> None:
    g = np.random.default_rng(seed)
    cost = g.standard_normal((n, m)) * 10.0 ** g.uniform(-decades / 2, decades / 2, (n, m))
    found, best = assign(cost=cost), optimum(cost)
    scale = np.abs(cost).max() * 1e-15 * (n + m)
    assert abs(found.objective - best) <= scale
    assert best - scale <= found.bound <= best + 1e-16 * abs(best)
    assert found.u is not None and found.v is not None
    assert (cost - found.u[:, None] - found.v[None, :]).min() >= -scale
    assert found.u.sum() + found.v.sum() == pytest.approx(found.bound, abs=scale)
    rows, columns = linear_sum_assignment(cost)
    assert abs(cost[rows, columns].sum() - best) <= scale
