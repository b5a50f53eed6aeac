"""Jobs with dead features set aside, with limits to the pairs, and with each baseline as the solver."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from sae_match import Permutation, SparseAutoencoder, UserError, load_sae, match
from sae_match.experiment import Result, run
from sae_match.rules import check_config
from sae_match.saes import save_native
from sae_match.study import Study
from tests.builders import random_sae

Configured = Callable[..., Study]
DEAD = 5


def with_dead(sae: SparseAutoencoder) -> SparseAutoencoder:
    """The same SAE whose first features can never fire."""
    threshold = sae.threshold.clone()
    threshold[:DEAD] = 1e6
    return SparseAutoencoder(**{**sae.parameters(), "threshold": threshold})


@pytest.fixture
def partly_dead_saes(tmp_path: Path) -> Path:
    root = tmp_path / "partly_dead"
    for layer in range(4):
        save_native(with_dead(random_sae(width=24, d=8, seed=layer)), root / f"layer_{layer:02d}.safetensors")
    save_native(with_dead(random_sae(width=24, d=8, seed=99)), root / "layer_01_seed_1.safetensors")
    return root


def values(result: Result, metric: str, variant: str) -> pd.Series:
    table = result.pairs
    return table[(table.metric == metric) & (table.variant == variant)].set_index("layer")["value"]


def saved(result: Result, layer: int) -> Permutation:
    return Permutation.load(result.directory / "permutations" / f"layer_{layer:02d}_to_{layer + 1:02d}.safetensors")


def test_dead_features_are_set_aside_and_counted(configured: Configured, partly_dead_saes: Path) -> None:
    result = run(configured(partly_dead_saes, "matching.dead_features=exclude"))
    aside, dead = values(result, "features_aside", "sae"), values(result, "dead_features", "sae")
    assert list(aside.index) == [0, 1, 2, 3]
    assert (aside == dead).all()  # counted over the same tokens by another path
    assert (aside >= DEAD).all()
    assert result.metrics["features_aside/sae"] == aside.sum()
    for layer in range(3):
        permutation = saved(result, layer)
        assert (permutation.indices[:DEAD] == -1).all()
        assert permutation.provenance["excluded_a"] == aside[layer]
        assert permutation.provenance["excluded_b"] == aside[layer + 1]
        assert not {*range(DEAD)} & set(permutation.indices.tolist())
        living = 24 - max(aside[layer], aside[layer + 1])
        assert values(result, "matched_pairs", "matched")[layer] == living
        random = result.pairs[(result.pairs.layer == layer) & (result.pairs.variant == "random")]
        assert set(random[random.metric == "decoder_cosine"]["n"]) == {living}
        vanilla = result.pairs[(result.pairs.layer == layer) & (result.pairs.variant == "vanilla")]
        assert set(vanilla[vanilla.metric == "decoder_cosine"]["n"]) <= set(range(1, int(living) + 1))
    ceiling = result.pairs[result.pairs.variant == "ceiling"]
    assert set(ceiling[ceiling.metric == "decoder_cosine"]["n"]) == {24 - aside[1]}


def test_dead_features_are_kept_unless_asked(configured: Configured, partly_dead_saes: Path) -> None:
    result = run(configured(partly_dead_saes))
    assert "features_aside/sae" not in result.metrics
    assert (values(result, "matched_pairs", "matched") == 24).all()


def test_pairs_and_rejection_reach_the_solver(configured: Configured, random_saes: Path) -> None:
    a, b = (load_sae(random_saes / f"layer_{i:02d}.safetensors") for i in (0, 1))
    few = run(configured(random_saes, "evaluation=weights_only", "matching.n_pairs=7"))
    assert torch.equal(saved(few, 0).indices, match(a, b, n_pairs=7).permutation.indices)
    assert len(pd.read_parquet(few.directory / "features.parquet")) == 3 * 7
    cost = match(a, b).objective / 24
    some = run(configured(random_saes, "evaluation=weights_only", f"matching.rejection_cost={cost}", output="some"))
    assert torch.equal(saved(some, 0).indices, match(a, b, rejection_cost=cost).permutation.indices)
    assert 0 < some.metrics["matched_pairs"] < 3 * 24


def test_nothing_matched_is_still_a_record(configured: Configured, random_saes: Path) -> None:
    result = run(configured(random_saes, "matching.rejection_cost=0"))
    assert result.metrics["matched_pairs"] == 0
    assert result.metrics["matching_score"] == 0.0
    assert "weight_mse/W_dec" not in result.metrics
    assert math.isfinite(result.metrics["weight_mse/W_dec/random"])


def test_more_pairs_than_features_fail_before_anything_is_computed(configured: Configured, random_saes: Path) -> None:
    with pytest.raises(UserError, match=r"matching.n_pairs=25: SAEs of 24 and 24 features have at most 24"):
        run(configured(random_saes, "matching.n_pairs=25", "model.path=/absent"))


@pytest.mark.parametrize(
    "solver", ["vanilla", "random", "greedy", "nearest", "mutual", "cosine", "soft", "unbalanced", "dense"]
)
def test_a_whole_job_with_every_solver(configured: Configured, random_saes: Path, solver: str) -> None:
    result = run(configured(random_saes, f"solver={solver}", "evaluation.bootstrap_samples=5"))
    assert json.loads((result.directory / "metrics.json").read_text()) == pytest.approx(result.metrics)
    assert all(math.isfinite(value) for value in result.metrics.values())
    claims = {"gap", "lower_bound", "tolerance"} & set(result.metrics)
    assert claims == ({"gap", "lower_bound", "tolerance"} if solver == "dense" else set())
    assert saved(result, 0).many_to_one == (solver in ("nearest", "unbalanced"))
    if solver in ("vanilla", "random"):
        same = values(result, "matching_score", solver if solver == "vanilla" else "matched")
        assert (values(result, "matching_score", "matched") == same).all()


def test_what_the_certified_solver_did_is_in_the_record(configured: Configured, random_saes: Path) -> None:
    result = run(configured(random_saes, "evaluation=weights_only"))
    for name in ("gap", "lower_bound", "objective", "tolerance", "solver/row_remakes", "solver/peak_memory_gib",
                 "solver/seconds/total", "solver/seconds/auction", "solver_seconds", "matched_pairs"):  # fmt: skip
        assert len(values(result, name, "matched")) == 3, name
        assert name in result.metrics
    assert result.metrics["gap"] <= 1e-9
    assert result.metrics["solver/peak_memory_gib"] == values(result, "solver/peak_memory_gib", "matched").max()
    assert result.metrics["solver/row_remakes"] == values(result, "solver/row_remakes", "matched").sum()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["matching.dead_features=exclude", "evaluation=weights_only"], "dead_features=exclude needs activations"),
        (["solver=greedy", "matching.n_pairs=3"], "solver=greedy knows no such limit; use solver=certified"),
        (["solver=dense", "matching.rejection_cost=3"], "solver=dense knows no such limit"),
        (["matching.rejection_cost=1", "matching.n_pairs=3"], "give one of them"),
        (["matching.rejection_cost=-1"], "matching.rejection_cost=-1: must be greater than or equal to 0"),
        (["matching.rejection_cost=inf"], "matching.rejection_cost=inf: must be a finite number"),
        (["matching.n_pairs=0"], "matching.n_pairs=0: must be greater than or equal to 1"),
        (["solver.time_limit_s=-1"], "solver.time_limit_s=-1: must be greater than or equal to 0"),
        (["solver.block_rows=0"], "solver.block_rows=0: must be greater than or equal to 1"),
        (["solver.memory_limit_gib=-1"], "solver.memory_limit_gib=-1: must be greater than or equal to 0"),
        (["solver=soft", "solver.regularization=nan"], "solver.regularization=nan: must be a finite number"),
        (["solver=dense", "+solver.time_limit_s=3"], "unknown configuration key: solver.time_limit_s"),
        (["solver=greedy", "+solver.rounding=log_plan"], "unknown configuration key: solver.rounding"),
    ],
)
def test_rules(configured: Configured, random_saes: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_config(configured(random_saes, *overrides))
