"""Every baseline against a few lines of brute force, and the orderings that must hold between solvers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae_match import Permutation, UserError, match
from sae_match.matching import MatchingProblem, make_solver
from sae_match.matching.baselines import GreedySolver, MutualSolver, NearestSolver
from sae_match.matching.baselines.nearest import LIST_LENGTH
from sae_match.matching.baselines.neighbors import Neighbors
from sae_match.matching.problem import unit_rows
from sae_match.matching.solution import Solution
from tests.builders import permuted, random_sae

BASELINES = ["vanilla", "random", "greedy", "nearest", "mutual", "cosine", "soft"]
ONE_TO_ONE = ["vanilla", "random", "greedy", "cosine", "soft"]


@st.composite
def problems(draw: st.DrawFn, largest: int = 12) -> MatchingProblem:
    """Small whole numbers in one or two dimensions: exact distances, and ties and duplicates all over."""
    n, m, d = draw(st.integers(1, largest)), draw(st.integers(1, largest)), draw(st.integers(1, 2))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    spread = draw(st.integers(1, 6))
    sides = (rng.integers(-spread, spread + 1, size=(k, d)).astype(np.float32) for k in (n, m))
    return MatchingProblem(*(torch.from_numpy(side) for side in sides))


def distances(problem: MatchingProblem) -> np.ndarray:
    a, b = problem.left.double().numpy(), problem.right.double().numpy()
    return ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2)


def greedy(cost: np.ndarray) -> list[int]:
    """Sort all pairs by (cost, row, column) and take each that is free."""
    partner, taken = [-1] * len(cost), set()
    for _, i, j in sorted((c, i, j) for (i, j), c in np.ndenumerate(cost)):
        if partner[i] == -1 and j not in taken:
            partner[i] = j
            taken.add(j)
    return partner


def solve(name: str, problem: MatchingProblem, **options: object) -> Solution:
    return make_solver(name, **options).solve(problem)


@given(problems())
def test_greedy_takes_the_cheapest_free_pair_every_time(problem: MatchingProblem) -> None:
    assert solve("greedy", problem).permutation.indices.tolist() == greedy(distances(problem))


@given(problems())
def test_nearest_is_the_first_minimum_of_each_row(problem: MatchingProblem) -> None:
    solution = solve("nearest", problem)
    cost = distances(problem)
    assert solution.permutation.indices.tolist() == cost.argmin(axis=1).tolist()
    assert solution.objective == cost.min(axis=1).sum()
    assert solution.permutation.many_to_one
    assert solution.statistics["distinct_partners"] == len(set(cost.argmin(axis=1).tolist()))


@given(problems())
def test_mutual_keeps_pairs_that_choose_each_other(problem: MatchingProblem) -> None:
    cost = distances(problem)
    there, back = cost.argmin(axis=1), cost.argmin(axis=0)
    expected = [int(j) if back[j] == i else -1 for i, j in enumerate(there)]
    solution = solve("mutual", problem)
    assert solution.permutation.indices.tolist() == expected
    assert solution.statistics["pairs"] == len(solution.permutation.matched) >= 1


@given(problems())
def test_every_one_to_one_baseline_matches_the_narrower_side(problem: MatchingProblem) -> None:
    n, m = problem.shape
    optimal = solve("certified", problem).objective
    for name in ONE_TO_ONE:
        solution = solve(name, problem)
        assert len(solution.permutation.matched) == min(n, m), name
        assert (solution.permutation.n_a, solution.permutation.n_b) == (n, m)
        assert solution.objective == problem.objective(solution.permutation)
        assert solution.objective >= optimal * (1 - 1e-12), name
    assert solve("nearest", problem).objective <= optimal * (1 + 1e-12) or n > m


@pytest.mark.parametrize("shape", [(400, 400), (500, 300), (300, 500)])
@pytest.mark.parametrize("hubs", [False, True])
def test_lists_are_made_anew_until_greedy_is_exact(shape: tuple[int, int], hubs: bool) -> None:
    """Wide enough that lists run out many times: noise, and a few columns that everybody wants."""
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(k, 8, generator=generator) for k in shape)
    if hubs:
        left[:200] = 0.01 * left[:200]
        right[: LIST_LENGTH * 2] *= 0.1
    problem = MatchingProblem(left, right)
    solution = solve("greedy", problem)
    assert solution.permutation.indices.tolist() == greedy(distances(problem))
    assert not hubs or solution.statistics["row_remakes"] > 100


def test_constant_and_duplicated_rows_are_ties_broken_by_index() -> None:
    constant = MatchingProblem(torch.ones(150, 3), torch.ones(140, 3))
    assert solve("greedy", constant).permutation.indices.tolist() == [*range(140), *[-1] * 10]
    assert solve("nearest", constant).permutation.indices.tolist() == [0] * 150
    assert solve("mutual", constant).permutation.indices.tolist() == [0, *[-1] * 149]
    rows = torch.randn(30, 7, generator=torch.Generator().manual_seed(2))
    doubled = MatchingProblem(rows.repeat(2, 1), rows.repeat(2, 1))
    assert solve("nearest", doubled).permutation.indices.tolist() == [*range(30), *range(30)]
    assert solve("greedy", doubled).permutation.indices.tolist() == list(range(60))


@pytest.mark.parametrize("name", BASELINES)
def test_one_feature_and_many(name: str) -> None:
    one, many = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 9.0], [2.0, 1.0], [5.0, 0.0]])
    assert solve(name, MatchingProblem(one, one)).permutation.indices.tolist() == [0]
    there = solve(name, MatchingProblem(one, many)).permutation.indices.tolist()
    back = solve(name, MatchingProblem(many, one)).permutation.indices.tolist()
    if name in ("random", "soft"):  # uniform marginals give all three the same mass
        assert (len(there), back.count(0)) == (1, 1)
        return
    assert there == [{"vanilla": 0, "cosine": 2}.get(name, 1)]
    assert back == {"vanilla": [0, -1, -1], "cosine": [-1, -1, 0], "nearest": [0, 0, 0]}.get(name, [-1, 0, -1])


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12, 1e30])
@pytest.mark.parametrize("solver", [GreedySolver, NearestSolver, MutualSolver])
def test_any_scale_block_size_and_thread_count(scale: float, solver: type) -> None:
    generator = torch.Generator().manual_seed(3)
    left, right = (torch.randn(90, 6, generator=generator) for _ in range(2))
    expected = solver().solve(MatchingProblem(left, right)).permutation.indices
    before = torch.get_num_threads()
    try:
        for threads, block_rows in ((1, 1), (2, 7), (2, 1000)):
            torch.set_num_threads(threads)
            power = 2.0 ** round(np.log2(scale))
            found = solver(block_rows=block_rows).solve(MatchingProblem(left * power, right * power))
            assert torch.equal(found.permutation.indices, expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("far", [0.0, 100.0, 1000.0])
def test_near_ties_far_from_the_origin_are_told_apart(far: float) -> None:
    """The float32 products of these rows differ by less than their own error; only exact costs tell."""
    generator = torch.Generator().manual_seed(4)
    left, right = (far + 1e-2 * torch.randn(60, 5, generator=generator) for _ in range(2))
    problem = MatchingProblem(left, right)
    assert solve("nearest", problem).permutation.indices.tolist() == distances(problem).argmin(axis=1).tolist()
    assert solve("greedy", problem).permutation.indices.tolist() == greedy(distances(problem))


def test_an_inaccurate_product_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b: exact(a.bfloat16(), b.bfloat16()).float())
    left, right = torch.randn(20, 64), torch.randn(20, 64)
    with pytest.raises(UserError, match="reduced-precision mode is on"):
        Neighbors(left, right).nearest(np.arange(20), 4)


def test_cosine_sees_directions_only() -> None:
    a, b = random_sae(width=40, seed=1), random_sae(width=40, seed=2)
    problem = MatchingProblem(a.W_dec * torch.linspace(1, 50, 40)[:, None], b.W_dec)
    plain = MatchingProblem(a.W_dec, b.W_dec)
    solution, expected = solve("cosine", problem), solve("certified", plain)
    assert torch.equal(solution.permutation.indices, expected.permutation.indices)
    assert solution.objective == problem.objective(expected.permutation)
    assert solution.statistics["cosine_objective"] == pytest.approx(expected.objective, rel=1e-6)
    assert solution.statistics["cosine_gap"] <= 1e-9


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
def test_unit_rows(size: float) -> None:
    rows: Tensor = size * torch.tensor([[3.0, 4.0], [0.0, 0.0], [-1.0, 0.0]])
    assert torch.allclose(unit_rows(rows), torch.tensor([[0.6, 0.8], [0.0, 0.0], [-1.0, 0.0]]))


def test_zero_rows_go_to_what_is_left() -> None:
    left, right = torch.tensor([[0.0, 0.0], [5.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert solve("cosine", MatchingProblem(left, right)).permutation.indices.tolist() == [1, 0]


def test_random_is_seeded_and_the_controls_are_the_same() -> None:
    problem = MatchingProblem(torch.randn(50, 2), torch.randn(40, 2))
    first, again, other = (make_solver("random", seed=s).solve(problem).permutation.indices for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first, Permutation.random(50, 40, seed=3).indices)
    assert torch.equal(solve("vanilla", problem).permutation.indices, Permutation.identity(50, 40).indices)


@pytest.mark.parametrize("name", [*BASELINES, "unbalanced"])
def test_no_baseline_claims_a_bound(name: str) -> None:
    matching = match(random_sae(seed=1), random_sae(seed=2), solver=name)
    assert matching.lower_bound is None
    assert matching.gap is None
    assert matching.permutation.provenance["gap"] is None
    assert matching.permutation.provenance["solver"] == name


@pytest.mark.parametrize("name", ["greedy", "nearest", "mutual", "cosine", "soft", "unbalanced", "dense", "certified"])
def test_a_planted_permutation_is_found(name: str) -> None:
    a = random_sae(width=60, d=16)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(7))
    matching = match(a, permuted(a, order), solver=name)
    assert torch.equal(order[matching.permutation.indices], torch.arange(60))
    assert matching.objective == 0.0


@pytest.mark.parametrize("name", [*BASELINES, "unbalanced", "dense"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rejection_cost": 1.0}, "rejection_cost and n_pairs need solver=certified"),
        ({"n_pairs": 2}, "rejection_cost and n_pairs need solver=certified"),
        ({"left": torch.full((4, 2), float("nan"))}, "NaN or infinity"),
        ({"right": torch.empty(0, 2)}, "nothing to match: 4 and 0"),
    ],
)
def test_refusals(name: str, change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"left": torch.ones(4, 2), "right": torch.ones(5, 2), **change}
    with pytest.raises(UserError, match=message):
        solve(name, MatchingProblem(**arguments))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [*BASELINES, "unbalanced", "dense"])
def test_memory_is_refused_before_anything_is_allocated(name: str) -> None:
    solver = make_solver(name, memory_limit_gib=0.5)
    solver.check_memory(1000, 1000, 64)
    with pytest.raises(UserError, match=f"solver={name} needs .* GiB for 4000000 x 4000000 features, but only 0.5"):
        solver.check_memory(4_000_000, 4_000_000, 1024)
