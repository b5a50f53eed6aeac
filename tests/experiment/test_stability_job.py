"""Jobs over several seeds of one layer, and jobs that ask for the rotated null."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from sae_match import SparseAutoencoder, UserError, stability
from sae_match.evaluation.nulls import above_null, exceeded_by, rotated
from sae_match.experiment import Result, matching_cache, run
from sae_match.experiment.rerun import job_key
from sae_match.matching import Matching, make_solver
from sae_match.matching.feature_pair import FeaturePair
from sae_match.matching.match import match_features
from sae_match.matching.similarity import Comparison, WeightDistance
from sae_match.matching.solution import Solver
from sae_match.plan.show import render
from sae_match.saes import load_native, save_native
from sae_match.study import Study
from tests.builders import random_sae
from tests.tiny_setting import planned

Configured = Callable[..., Study]
ONE_LAYER = ("evaluation=weights_only", "layers.first=1", "layers.last=1")
FEWER = "dataset.documents=5"
SEEDS = "evaluation.stability_seeds=['seed_{layer}_a.safetensors','seed_{layer}_b.safetensors']"


@pytest.fixture
def seeds(random_saes: Path) -> Path:
    """Beside layer 1 and its second seed, two more: one with half of layer 1's features in another place."""
    a, other = load_native(random_saes / "layer_01.safetensors"), random_sae(seed=7)
    half = torch.where((torch.arange(24) < 12)[:, None], a.W_dec.roll(3, dims=0), other.W_dec)
    save_native(other.replace(W_dec=half), random_saes / "seed_1_a.safetensors")
    save_native(random_sae(seed=8), random_saes / "seed_1_b.safetensors")
    return random_saes


def values(result: Result, metric: str) -> dict[str, float]:
    rows = result.pairs[result.pairs.metric == metric]
    assert set(rows.layer) | set(rows.layer_to) == {1}
    return dict(zip(rows.variant, rows.value, strict=True))


@pytest.mark.drawn
def test_a_job_of_one_layer_compares_its_seeds(configured: Configured, seeds: Path) -> None:
    study = configured(seeds, *ONE_LAYER, SEEDS)
    result = run(study)
    names = ("layer_01", "layer_01_seed_1", "seed_1_a", "seed_1_b")
    expected = stability([load_native(seeds / f"{name}.safetensors") for name in names])
    table = expected.to_frame()
    for metric in ("pw_mcc", "shared_fraction", "subspace_share", "subspace_share_random"):
        found = values(result, metric)
        means = table.groupby("variant")[metric].mean()
        assert {name: found[name] for name in means.index} == pytest.approx(dict(means))
        of_pairs = table[table.variant == "seeds"].set_index(["a", "b"])[metric]
        assert {name: value for name, value in found.items() if name.startswith("seeds_")} == pytest.approx(
            {f"seeds_{a}_{b}": value for (a, b), value in of_pairs.items()}
        )
    assert values(result, "reappearing") == {"seeds": pytest.approx(float(expected.reappearing().mean()))}
    assert result.metrics["shared_fraction/seeds"] > 0.08 and "pw_mcc/rotated" in result.metrics
    features = pd.read_parquet(result.directory / "stability.parquet")
    assert list(features.columns[:5]) == ["layer", "feature", "other", "partner", "cosine"] and len(features) == 3 * 24
    pd.testing.assert_frame_equal(features.drop(columns="layer"), expected.features())
    shared = features[(features.other == 2) & (features.feature < 9)]
    assert (shared.partner - shared.feature == 3).all() and (shared.reappearing > 0.3).all()
    assert [path.name for path in (result.directory / "figures").iterdir()] == ["stability.png"]
    assert "seeds of each layer compared (layers 1..1)" in render(
        planned(configured(seeds, *ONE_LAYER, SEEDS, output="new"))
    )


@pytest.mark.drawn
def test_seeds_are_compared_beside_neighbors_where_there_are_several(configured: Configured, seeds: Path) -> None:
    result = run(configured(seeds, "evaluation=weights_only", SEEDS))
    assert set(values(result, "pw_mcc")) >= {"seeds", "rotated", "random", "seeds_2_3"}
    assert len(result.features) == 3 * 24
    assert (result.directory / "figures" / "stability.png").is_file()
    alone = run(configured(seeds, "experiment=stability", *ONE_LAYER[1:], output="alone"))
    assert set(values(alone, "pw_mcc")) == {"seeds", "rotated", "random"}


def test_a_tracked_job_of_one_layer_is_complete(
    configured: Configured, seeds: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    with caplog.at_level(logging.WARNING):
        run(configured(seeds, *ONE_LAYER, SEEDS, "tracking=wandb_offline"))
    assert "incomplete" not in caplog.text


def test_the_content_of_a_seed_is_in_the_jobs_key(configured: Configured, seeds: Path) -> None:
    study = configured(seeds, *ONE_LAYER, SEEDS)
    before = job_key(study)
    save_native(random_sae(seed=9), seeds / "seed_1_b.safetensors")
    assert before is not None and job_key(study) not in (None, before)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [*ONE_LAYER, "evaluation.stability_seeds=['no_{layer}.safetensors']"],
            "no SAE of layer 1 at .*no_1.safetensors",
        ),
        (
            ["evaluation=weights_only", "evaluation.stability_seeds=['seed_{layer}_a.safetensors','{layer}']"],
            "no SAE of layer 1 at .*/1$",
        ),
        (
            ["evaluation=weights_only", "evaluation.stability_seeds=[seed_1_a.safetensors]"],
            r"seed_1_a.safetensors would be the seed of every layer: write \{layer\}",
        ),
        (
            [*ONE_LAYER, "layers.first=2", "layers.last=2", "evaluation.stability_seeds=[]"],
            "no layer of layers.first=2, layers.last=2 has a second SAE",
        ),
        ([*ONE_LAYER, "evaluation.stability_seeds=[wide.safetensors]"], "d_model 9, but layer 1's SAE reads 8"),
        ([*ONE_LAYER, SEEDS, "solver.memory_limit_gib=0"], "solver=certified needs"),
        (["layers.first=1", "layers.last=1", SEEDS], "a span needs at least two layers"),
        ([*ONE_LAYER], "a span needs at least two layers"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_the_job(
    configured: Configured, seeds: Path, overrides: list[str], message: str
) -> None:
    save_native(random_sae(d=9), seeds / "wide.safetensors")
    with pytest.raises(UserError, match=message):
        planned(configured(seeds, *overrides)).require()


def test_the_same_file_twice_is_no_seed(configured: Configured, seeds: Path) -> None:
    with pytest.raises(UserError, match=r"layer_01.safetensors: the same SAE as .*layer_01.safetensors"):
        run(configured(seeds, *ONE_LAYER, f"evaluation.stability_seeds=['{seeds}/layer_0{{layer}}.safetensors']"))


def test_seeds_of_one_initialization_are_told(configured: Configured, tmp_path: Path) -> None:
    start = random_sae(width=60, d=8)
    for name, seed in (("layer_01", 1), ("layer_01_seed_1", 2)):
        step = torch.randn(60, 8, generator=torch.Generator().manual_seed(seed)) / 9
        save_native(
            start.replace(W_dec=torch.nn.functional.normalize(start.W_dec + step)), tmp_path / f"{name}.safetensors"
        )
    result = run(configured(tmp_path, *ONE_LAYER, "evaluation.stability_seeds=[]"))
    (warning,) = json.loads((result.directory / "status.json").read_text())["warnings"]
    assert warning.startswith("layer 1: SAEs 0 and 1: feature i resembles")


def test_a_job_says_what_is_above_the_null(
    configured: Configured, random_saes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    controls = "evaluation/controls=[vanilla,random,greedy,correlation]"
    study = configured(random_saes, "evaluation.null_alpha=0.1", controls, "matching=decoder", FEWER)
    solved: list[SparseAutoencoder] = []

    def counting(similarity: Comparison, solver: Solver, pair: FeaturePair, *more: Any) -> Matching:
        solved.append(pair.b)
        return match_features(similarity, solver, pair, *more)

    monkeypatch.setattr(matching_cache, "match_features", counting)
    pairs = run(study).pairs
    n = len(solved)
    assert n == 2 * (3 * 3 + 1)  # three matchers of three pairs, two seeds, and the rotated ones of all
    nulls = pairs[pairs.metric == "above_null"]
    assert sorted(nulls[nulls.layer == 1].variant) == ["ceiling", "correlation", "greedy", "matched"]
    assert nulls.value.between(0, 1).all() and (nulls.n == 24).all()
    a, b = (load_native(random_saes / f"layer_0{layer}.safetensors") for layer in (1, 2))
    pair = FeaturePair(a, b, layers=(1, 2), seed=study.seed)
    decoder, exact = WeightDistance(metric="decoder"), make_solver("certified")
    null = match_features(decoder, exact, replace(pair, b=rotated(b, study.seed)))
    threshold = exceeded_by(null.confidence, 0.1)
    share = above_null(match_features(decoder, exact, pair).confidence, threshold)
    rows = pairs[(pairs.layer == 1) & (pairs.layer_to == 2) & (pairs.variant == "matched")].set_index("metric").value
    assert (rows["null_threshold"], rows["above_null"]) == (pytest.approx(threshold), pytest.approx(share))
    again = run(
        configured(random_saes, "evaluation.null_alpha=0.3", controls, "matching=decoder", FEWER, output="again")
    )
    assert len(solved) == n  # another alpha reads the same matchings
    assert again.metrics["above_null"] >= nulls[nulls.variant == "matched"].value.mean()
