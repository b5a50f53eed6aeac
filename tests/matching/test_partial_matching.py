"""Features set aside, rejections and fixed numbers of pairs, through `match`."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae_match import Permutation, SparseAutoencoder, UserError, match
from sae_match.matching import make_solver, matching_problem
from sae_match.matching.match import SOLVERS
from tests.builders import permuted, random_sae


def cost_of(a: SparseAutoencoder, b: SparseAutoencoder) -> Tensor:
    problem = matching_problem(a, b)
    return (problem.left.double()[:, None] - problem.right.double()[None]).square().sum(dim=2)


@pytest.mark.parametrize(
    "solver", ["certified", "dense", "greedy", "nearest", "mutual", "cosine", "soft", "unbalanced"]
)
def test_setting_aside_is_matching_what_is_left(solver: str) -> None:
    a, b = random_sae(width=30, seed=1), random_sae(width=26, seed=2)
    generator = torch.Generator().manual_seed(3)
    gone_a, gone_b = torch.rand(30, generator=generator) < 0.3, torch.rand(26, generator=generator) < 0.2
    kept_a, kept_b = (~gone_a).nonzero().flatten(), (~gone_b).nonzero().flatten()
    matching = match(a, b, solver=solver, exclude_a=gone_a, exclude_b=gone_b)
    part = match(permuted(a, kept_a), permuted(b, kept_b), solver=solver)
    indices = matching.permutation.indices
    assert (indices[gone_a] == -1).all()
    assert not gone_b[indices[indices >= 0]].any()
    partners = part.permutation.indices
    assert torch.equal(indices[kept_a], torch.where(partners < 0, -1, kept_b[partners]))
    assert matching.objective == part.objective
    assert (matching.gap, matching.lower_bound) == (part.gap, part.lower_bound)
    assert matching.permutation.many_to_one == (solver in ("nearest", "unbalanced"))
    provenance = matching.permutation.provenance
    assert (provenance["excluded_a"], provenance["excluded_b"]) == (int(gone_a.sum()), int(gone_b.sum()))


def test_vanilla_keeps_every_features_own_number() -> None:
    gone_a, gone_b = torch.tensor([True, False, False, False]), torch.tensor([False, False, True, False, False])
    a, b = random_sae(width=4, seed=1), random_sae(width=5, seed=2)
    indices = match(a, b, solver="vanilla", exclude_a=gone_a, exclude_b=gone_b).permutation.indices
    assert indices.tolist() == [-1, 1, -1, 3]
    assert len(match(a, b, solver="random", exclude_a=gone_a, exclude_b=gone_b).permutation.matched) == 3


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(23, dtype=torch.bool), r"exclude_b is a bool mask \[24\], got torch.bool \(23,\)"),
        (torch.zeros(24), "got torch.float32"),
        (torch.ones(24, dtype=torch.bool), "nothing to match: 24 and 0 features"),
    ],
)
def test_masks_that_do_not_fit(mask: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        match(random_sae(seed=1), random_sae(seed=2), exclude_b=mask)


@given(seed=st.integers(0, 10**6), n=st.integers(1, 4), m=st.integers(1, 5), share=st.floats(0, 1.5))
def test_rejection_is_the_best_of_all_partial_matchings(seed: int, n: int, m: int, share: float) -> None:
    a, b = random_sae(width=n, d=2, seed=seed), random_sae(width=m, d=2, seed=seed + 1)
    cost = cost_of(a, b)
    rejection = share * float(cost.mean())
    matching = match(a, b, rejection_cost=rejection)
    narrower = min(n, m)
    best = min(value + rejection * (narrower - pairs) for pairs, value in partial_costs(cost))
    assert matching.objective == pytest.approx(best, rel=1e-9, abs=1e-12)
    assert matching.permutation.provenance["rejection_cost"] == rejection


@given(seed=st.integers(0, 10**6), n=st.integers(1, 4), m=st.integers(1, 5), data=st.data())
def test_a_number_of_pairs_is_the_best_set_of_them(seed: int, n: int, m: int, data: st.DataObject) -> None:
    a, b = random_sae(width=n, d=2, seed=seed), random_sae(width=m, d=2, seed=seed + 1)
    wanted = data.draw(st.integers(1, min(n, m)))
    matching = match(a, b, n_pairs=wanted)
    best = min(value for pairs, value in partial_costs(cost_of(a, b)) if pairs == wanted)
    assert len(matching.permutation.matched) == wanted
    assert matching.objective == pytest.approx(best, rel=1e-9)
    assert matching.permutation.provenance["n_pairs"] == wanted


def partial_costs(cost: Tensor) -> list[tuple[int, float]]:
    """Number of pairs and cost of every partial matching."""
    n, m = cost.shape
    return [
        (k, sum(float(cost[i, j]) for i, j in zip(rows, columns, strict=True)))
        for k in range(min(n, m) + 1)
        for rows in itertools.combinations(range(n), k)
        for columns in itertools.permutations(range(m), k)
    ]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"rejection_cost": -1.0}, "rejection_cost=-1.0: must be a finite number >= 0"),
        ({"rejection_cost": float("nan")}, "must be a finite number >= 0"),
        ({"n_pairs": 25}, r"n_pairs=25: must be in 1\.\.24"),
        ({"n_pairs": 0}, r"n_pairs=0: must be in 1\.\.24"),
        ({"n_pairs": 3, "rejection_cost": 1.0}, "give one of them"),
    ],
)
def test_impossible_limits(limits: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        match(random_sae(seed=1), random_sae(seed=2), **limits)  # type: ignore[arg-type]


def test_solvers_are_made_from_names_and_options() -> None:
    for name in SOLVERS:
        assert make_solver(name).name == name
    with pytest.raises(UserError, match="block_rows"):
        make_solver("random", block_rows=7)
    solver = make_solver("certified", time_limit_s=5.0, verify=False, block_rows=7, cache=False).on("cpu", True)
    chosen = {key: getattr(solver, key) for key in ("time_limit_s", "verify", "block_rows", "cache", "progress")}
    assert chosen == {"time_limit_s": 5.0, "verify": False, "block_rows": 7, "cache": False, "progress": True}
    a, b = random_sae(seed=1), random_sae(seed=2)
    assert match(a, b, solver=solver).objective == match(a, b).objective == match(a, b, solver="dense").objective
    assert match(a, b).statistics["peak_memory_gib"] > 0


def test_a_many_to_one_matching_can_be_evaluated() -> None:
    a, b = random_sae(width=40, seed=1), random_sae(width=10, seed=2)
    permutation = match(a, b, solver="nearest").permutation
    assert isinstance(permutation, Permutation)
    assert len(permutation.matched) == 40
    f = torch.rand(3, 40)
    assert float(permutation.apply(f).sum()) == pytest.approx(float(f.sum()), rel=1e-5)
