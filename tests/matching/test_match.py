"""Optimality against independent solvers, planted permutations, certificates, invariances."""

from __future__ import annotations

import itertools
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.optimize import linear_sum_assignment

from sae_match import SparseAutoencoder, UserError, fold, match
from sae_match.matching import MatchingProblem, matching_problem
from sae_match.matching.certified import CertifiedSolver
from sae_match.matching.dense import DenseSolver, grid_cost, row_duals
from sae_match.matching.problem import GroupWeights, SimilarityProblem
from tests.builders import permuted, random_sae
from tests.matching.problems import KINDS, problem_of

METRICS = ["both", "decoder", "encoder"]
FOLDINGS = ["theta", "none"]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("folding", FOLDINGS)
def test_planted_permutation_is_recovered_exactly(metric: str, folding: str) -> None:
    a = random_sae(width=200, d=16)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(7))
    matching = match(a, permuted(a, order), metric, folding)
    assert torch.equal(order[matching.permutation.indices], torch.arange(200))
    assert matching.objective == 0.0
    assert matching.gap == 0.0


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("folding", FOLDINGS)
def test_objective_equals_scipy_on_explicit_distances(metric: str, folding: str) -> None:
    a, b = random_sae(width=40, seed=1), random_sae(width=40, seed=2)
    sides = []
    for sae in (a, b):
        s = fold(sae) if folding == "theta" else sae
        groups = {"both": [s.W_enc.T, s.b_enc[:, None], s.W_dec], "decoder": [s.W_dec],
                  "encoder": [s.W_enc.T, s.b_enc[:, None]]}[metric]  # fmt: skip
        sides.append(torch.cat(groups, dim=1).double().numpy())
    distances = ((sides[0][:, None, :] - sides[1][None, :, :]) ** 2).sum(axis=2)
    rows, columns = linear_sum_assignment(distances)
    matching = match(a, b, metric, folding)
    assert matching.objective == pytest.approx(distances[rows, columns].sum(), rel=1e-10)
    assert matching.permutation.indices.tolist() == columns.tolist()


@given(seed=st.integers(0, 10**6), n=st.integers(1, 6), m=st.integers(1, 6))
def test_optimal_among_all_assignments(seed: int, n: int, m: int) -> None:
    a, b = random_sae(width=n, d=2, seed=seed), random_sae(width=m, d=2, seed=seed + 1)
    problem = matching_problem(a, b)
    cost = torch.cdist(problem.left.double(), problem.right.double()).square().numpy()
    if n > m:
        cost = cost.T
    best = min(
        sum(cost[i, j] for i, j in enumerate(columns))
        for columns in itertools.permutations(range(cost.shape[1]), len(cost))
    )
    matching = match(a, b)
    assert matching.objective == pytest.approx(best, rel=1e-9)
    # `best` is itself a rounded sum.
    assert matching.lower_bound <= best * (1 + 1e-12) + matching.tolerance
    assert len(matching.permutation.matched) == min(n, m)
    assert matching.gap <= 1e-9


@given(seed=st.integers(0, 10**6), n=st.integers(1, 30), m=st.integers(1, 30))
def test_the_dense_solver_proves_what_scipy_finds(seed: int, n: int, m: int) -> None:
    g = torch.Generator().manual_seed(seed)
    left, right = (torch.randint(-3, 4, (rows, 2), generator=g).float() for rows in (n, m))  # many ties
    distances = torch.cdist(left.double(), right.double()).square().round()
    rows, columns = linear_sum_assignment(distances)
    solution = DenseSolver(block_rows=7).solve(MatchingProblem(left, right))
    assert solution.objective == distances[rows, columns].sum()
    assert 0 <= solution.objective - solution.lower_bound <= solution.tolerance
    similarity = SimilarityProblem(-distances.float())
    assert DenseSolver().solve_similarity(similarity).objective == 2 * min(n, m) + 2 * solution.objective


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "m"), [(60, 60), (45, 60), (60, 45)])
def test_both_exact_solvers_choose_the_same_of_equal_optima(kind: str, n: int, m: int) -> None:
    problem = problem_of(kind, n, m, 3, seed=n + m)
    dense, certified = DenseSolver(block_rows=16).solve(problem), CertifiedSolver().solve(problem)
    assert torch.equal(dense.permutation.indices, certified.permutation.indices)
    assert dense.gap <= 1e-8 and certified.gap == 0


@given(seed=st.integers(0, 10**6), n=st.integers(1, 12), extra=st.integers(0, 5))
def test_no_assignment_costs_less_than_the_duals_of_any_prices(seed: int, n: int, extra: int) -> None:
    rng = np.random.default_rng(seed)
    cost = rng.integers(-50, 50, size=(n, n + extra)).astype(np.float64)
    price = rng.integers(-50, 1, size=n + extra).astype(np.float64)
    rows, best = linear_sum_assignment(cost)
    dual, (i, j) = row_duals(cost, price, np.arange(n, dtype=np.int32), block_rows=4)
    assert dual.sum() + price.sum() <= cost[rows, best].sum()
    assert set(zip(i, j, strict=True)) == set(zip(*np.nonzero(cost - price == dual[:, None]), strict=True))


def test_duplicated_features_are_ties_broken_by_index() -> None:
    a = permuted(random_sae(width=6), torch.tensor([0, 0, 1, 1, 2, 2]))
    b = permuted(random_sae(width=6), torch.tensor([2, 1, 0, 2, 1, 0]))
    results = {tuple(match(a, b).permutation.indices.tolist()) for _ in range(3)}
    assert len(results) == 1
    assert match(a, b).objective == 0.0


@pytest.mark.parametrize("block_rows", [1, 7, 64, 1000])
@pytest.mark.parametrize("threads", [1, 2])
def test_same_permutation_for_any_block_size_and_thread_count(block_rows: int, threads: int) -> None:
    a, b = random_sae(width=150, d=16, seed=1), random_sae(width=150, d=16, seed=2)
    expected = match(a, b).permutation.indices
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = match(a, b, solver=DenseSolver(block_rows=block_rows)).permutation.indices
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, expected)


def test_rectangular_both_ways() -> None:
    narrow, wide = random_sae(width=20, seed=1), random_sae(width=33, seed=2)
    forward, backward = match(narrow, wide), match(wide, narrow)
    assert forward.objective == pytest.approx(backward.objective, rel=1e-12)
    assert torch.equal(forward.permutation.indices, backward.permutation.inverse().indices)
    assert len(backward.permutation.matched) == 20


def test_bias_and_weights_change_the_cost_as_stated() -> None:
    a, b = random_sae(width=12, seed=1), random_sae(width=12, seed=2)
    plain = matching_problem(a, b, metric="both", folding="none")
    without = matching_problem(a, b, metric="both", folding="none", include_bias=False)
    weighted = matching_problem(a, b, metric="both", folding="none", weights=GroupWeights(b_enc=4.0))
    permutation = match(a, b).permutation
    bias = float((a.b_enc - b.b_enc[permutation.indices]).double().square().sum())
    assert plain.objective(permutation) - without.objective(permutation) == pytest.approx(bias, rel=1e-5)
    assert weighted.objective(permutation) - without.objective(permutation) == pytest.approx(4 * bias, rel=1e-5)


def test_unfolded_matching_ignores_thresholds() -> None:
    a, b = random_sae(seed=1), random_sae(seed=2)
    scaled = SparseAutoencoder(**{**a.parameters(), "threshold": a.threshold * 9})
    assert match(a, b, folding="none").objective == match(scaled, b, folding="none").objective
    assert match(a, b).objective != match(scaled, b).objective


def test_provenance_names_both_saes_and_the_scheme() -> None:
    a, b = random_sae(seed=1), random_sae(seed=2)
    provenance = match(a, b, "decoder", "none").permutation.provenance
    assert provenance["sae_a"] == a.content_hash
    assert provenance["sae_b"] == b.content_hash
    assert (provenance["metric"], provenance["folding"], provenance["solver"]) == ("decoder", "none", "certified")


def test_grid_is_finer_than_float32() -> None:
    problem = matching_problem(random_sae(seed=1), random_sae(seed=2))
    cost, step = grid_cost(problem.left, problem.right, 5)
    exact = torch.cdist(problem.left.double(), problem.right.double()).square()
    assert float((torch.from_numpy(cost) * step - exact).abs().max()) <= step / 2 + 1e-12
    assert step < 1e-9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "neither"}, "metric=neither: must be one of both, decoder, encoder"),
        ({"folding": "yes"}, "folding=yes: must be one of theta, none"),
        ({"solver": "fast"}, "solver=fast: must be one of certified, dense, vanilla"),
        ({"solver": DenseSolver(memory_limit_gib=1e-6)}, r"solver=dense needs .* GiB for 24 x 24"),
    ],
)
def test_refusals(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        match(random_sae(seed=1), random_sae(seed=2), **arguments)  # type: ignore[arg-type]


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValidationError, match="W_dec"):
        GroupWeights(W_dec=-1.0)


def test_different_residual_streams_are_refused() -> None:
    with pytest.raises(UserError, match="d_model 8 and 6"):
        match(random_sae(), random_sae(d=6))


def test_a_matching_is_shown_in_one_line_and_as_a_small_table() -> None:
    matching = match(random_sae(seed=1), random_sae(width=30, seed=2))
    assert len(repr(matching)) < 160 and "\n" not in repr(matching)
    page = matching._repr_html_()
    assert "24 and 30, 24 matched" in page and "proved optimal" in page
    assert "no bound" in match(random_sae(seed=1), random_sae(width=30, seed=2), solver="greedy")._repr_html_()


def test_compiling_is_no_time_of_a_matching(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def compile_kernels(self: CertifiedSolver, problem: object) -> None:
        now[0] += 20.0

    clock = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(sys.modules["sae_match.matching.match"], "time", clock)
    monkeypatch.setattr(CertifiedSolver, "warm_up", compile_kernels)
    assert match(random_sae(seed=1), random_sae(seed=2)).seconds == 0.0 and now == [20.0]


def test_confidence_orders_the_pairs_by_what_was_compared() -> None:
    a, b = random_sae(seed=1), random_sae(seed=2)
    gone = torch.zeros(a.width, dtype=torch.bool)
    gone[3] = True
    found = match(a, b, exclude_a=gone)
    assert torch.isnan(found.confidence).nonzero().flatten().tolist() == [3]
    assert float(-found.confidence.nansum()) == pytest.approx(found.objective)
    left, right = (torch.cat([sae.W_enc.T, sae.b_enc[:, None], sae.W_dec], dim=1) for sae in (fold(a), fold(b)))
    partner = int(found.permutation.indices[5])
    assert float(found.confidence[5]) == pytest.approx(-float((left[5] - right[partner]).square().sum()), rel=1e-5)
    similarities = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    best = SimilarityProblem(similarities)
    permutation = DenseSolver().solve_similarity(best).permutation
    torch.testing.assert_close(best.confidence(permutation), similarities[torch.arange(4), permutation.indices])
