"""Composition over distance and feature paths through real jobs: planted permutations, controls, headline numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_match import Permutation, UserError, load_sae, match
from sae_match.evaluation import evaluate_pair
from sae_match.experiment import Result, run
from sae_match.experiment.headline import composition_headline, reach
from sae_match.experiment.matching import agreement_rows
from sae_match.experiment.paths import path_table
from sae_match.language_model import load_language_model
from sae_match.matching import Chain, match_chain
from sae_match.pairs import Pair, Role, Site, job_pairs
from sae_match.record.pairs import distance_rows
from sae_match.rules import check_config
from sae_match.saes import save_native
from sae_match.store import Store
from sae_match.study import Study
from sae_match.text import load_windows
from tests.builders import permuted, random_sae
from tests.experiment.conftest import StandardJob

Configured = Callable[..., Study]
FAR = [(0, 2), (0, 3), (1, 3)]


@pytest.fixture
def planted_saes(tmp_path: Path) -> Path:
    """One SAE over all layers, its features in another order in each."""
    sae = random_sae(width=24, d=8)
    for layer in range(4):
        order = torch.randperm(24, generator=torch.Generator().manual_seed(layer))
        save_native(permuted(sae, order), tmp_path / "planted" / f"layer_{layer:02d}.safetensors")
    return tmp_path / "planted"


def value(result: Result, layers: tuple[int, int], variant: str, metric: str) -> float:
    table = result.pairs
    at = (table.layer == layers[0]) & (table.layer_to == layers[1])
    found = table[at & (table.variant == variant) & (table.metric == metric)]
    assert len(found) == 1, (layers, variant, metric)
    return float(found["value"].iloc[0])


def chain_of(directory: Path, layers: int = 4) -> Chain:
    return match_chain(load_sae(directory / f"layer_{i:02d}.safetensors") for i in range(layers))


@pytest.mark.figures
def test_planted_permutations_compose_to_the_exact_ones(configured: Configured, planted_saes: Path) -> None:
    result = run(configured(planted_saes, "composition.max_distance=3", "composition.paths=true"))
    chain = chain_of(planted_saes)
    for layers in FAR:
        assert value(result, layers, "composed", "agreement") == 1.0
        assert value(result, layers, "random", "agreement") < 0.5
        assert value(result, layers, "composed", "weight_mse/W_dec") == 0.0
        for metric in ("matching_score", "explained_variance", "r2", "matching_iou"):
            assert value(result, layers, "composed", metric) == value(result, layers, "exact", metric)
        assert value(result, layers, "composed", "matching_score") > value(result, layers, "random", "matching_score")
        saved = Permutation.load(result.directory / "permutations" / f"layer_0{layers[0]}_to_0{layers[1]}.safetensors")
        assert torch.equal(saved.indices, chain.between(*layers).indices)
        assert (saved.provenance["layer_a"], saved.provenance["layer_b"]) == layers
    assert result.metrics["composition/agreement/composed/distance_3"] == 1.0
    assert result.metrics["composition/beats_random_until"] == 3.0
    assert result.metrics["composition/beats_random_until_low"] == 3.0
    assert result.metrics["composition/beats_random_reached"] == 0.0
    assert (result.directory / "figures" / "composition.png").stat().st_size > 10_000
    assert json.loads((result.directory / "metrics.json").read_text()) == pytest.approx(result.metrics)


def test_composed_numbers_are_those_of_the_library(configured: Configured, random_saes: Path) -> None:
    """Independent SAEs: the composed permutation differs from the exact one, and each is scored as itself."""
    cfg = configured(random_saes, "composition.max_distance=2", "composition.starts=[1]")
    result = run(cfg)
    chain = chain_of(random_saes)
    a, b = (load_sae(random_saes / f"layer_{i:02d}.safetensors") for i in (1, 3))
    composed, exact = chain.between(1, 3), match(a, b).permutation
    same = int((composed.indices == exact.indices).sum())
    assert same < 24
    assert value(result, (1, 3), "composed", "agreement") == same / 24
    model = load_language_model(cfg.model, "cpu", Store(cfg.paths.cache_dir))
    windows = load_windows(cfg.dataset, model.tokenizer, Store(cfg.paths.cache_dir), cfg.model.bos)
    x = model.resid_post(windows.ids, [1, 3])
    for variant, permutation in (("composed", composed), ("exact", exact)):
        expected = evaluate_pair(a, b, permutation, x[1], x[3], windows.document).rows
        for row in expected:
            if (row.metric, row.variant) in {
                ("matching_score", "matched"),
                ("explained_variance", "encode_permute_decode"),
                ("weight_mse/W_dec", "matched"),
            }:
                assert value(result, (1, 3), variant, row.metric) == pytest.approx(row.value, abs=1e-6)
    far = result.pairs[result.pairs.layer_to - result.pairs.layer >= 2]
    assert set(zip(far.layer, far.layer_to, strict=True)) == {(1, 3)}


def test_nothing_changes_where_nothing_is_asked(
    configured: Configured, random_saes: Path, standard_job: StandardJob
) -> None:
    plain = standard_job.result
    far = run(configured(random_saes, "composition.max_distance=3", "composition.paths=true", output="far"))
    assert not any("composition" in name for name in plain.metrics)
    assert not (plain.directory / "paths.parquet").exists()
    assert not (plain.directory / "figures" / "composition.png").exists()
    assert len(list((plain.directory / "permutations").iterdir())) == 3
    assert set(plain.pairs.layer_to - plain.pairs.layer) == {0, 1}
    measured = ("solver_seconds", "solver/")
    for name, number in plain.metrics.items():
        if not name.startswith(measured):
            assert far.metrics[name] == number, name
    near = far.pairs[far.pairs.layer_to - far.pairs.layer <= 1]
    assert len(near) == len(plain.pairs)


def test_weights_alone_give_agreement_and_weight_metrics(configured: Configured, random_saes: Path) -> None:
    result = run(configured(random_saes, "evaluation=weights_only", "composition.max_distance=3"))
    far = result.pairs[result.pairs.layer_to - result.pairs.layer >= 2]
    assert {"agreement", "weight_mse/W_dec", "objective", "gap"} <= set(far.metric)
    assert "matching_score" not in set(far.metric)
    assert "composition/agreement/composed/distance_2" in result.metrics
    assert "composition/beats_random_until" not in result.metrics


def test_dead_features_stay_aside_at_a_distance(configured: Configured, random_saes: Path) -> None:
    result = run(configured(random_saes, "matching.dead_features=exclude", "composition.max_distance=3"))
    aside = result.pairs[result.pairs.metric == "features_aside"].set_index("layer")["value"]
    for a, b in FAR:
        saved = Permutation.load(result.directory / "permutations" / f"layer_0{a}_to_0{b}.safetensors")
        assert len(saved.matched) == 24 - max(aside[a], aside[b])


def test_paths_are_those_of_the_chain(configured: Configured, random_saes: Path) -> None:
    result = run(configured(random_saes, "composition.paths=true"))
    table = pd.read_parquet(result.directory / "paths.parquet")
    chain, features = chain_of(random_saes), result.features.set_index(["layer", "feature"])
    assert len(table) == 24 * 4
    for number, path in table.groupby("path"):
        assert path["feature"].tolist() == chain.path(int(number))
        assert path["layer"].tolist() == [0, 1, 2, 3]
        assert path.iloc[0][["mse_W_dec", "decoder_cosine", "matching_score"]].isna().all()
        for before, after in pairwise(path.itertuples()):
            step = features.loc[(before.layer, before.feature)]
            assert step["partner"] == after.feature
            assert step["mse_W_dec"] == pytest.approx(after.mse_W_dec)
            assert np.isclose(step["matching_score"], after.matching_score, equal_nan=True)


def test_a_path_ends_where_there_is_no_partner(configured: Configured, random_saes: Path) -> None:
    overrides = ("evaluation=weights_only", "composition.paths=true", "matching.n_pairs=7")
    result = run(configured(random_saes, *overrides))
    table = pd.read_parquet(result.directory / "paths.parquet")
    steps = [
        Permutation.load(result.directory / "permutations" / f"layer_0{i}_to_0{i + 1}.safetensors").indices.tolist()
        for i in range(3)
    ]
    for number, path in table.groupby("path"):
        expected = [int(number)]
        for step in steps:
            if step[expected[-1]] < 0:
                break
            expected.append(step[expected[-1]])
        assert path["feature"].tolist() == expected
    assert table["matching_score"].isna().all()
    assert (table.groupby("path").size() == 1).sum() == 24 - 7


def test_an_empty_step_ends_every_path() -> None:
    features = pd.DataFrame({"layer": [0], "feature": [1], "partner": [0], "mse_W_dec": [0.5], "decoder_cosine": [1.0]})
    table = path_table(features, [0, 1, 2], 2)
    assert table[["path", "layer", "feature"]].values.tolist() == [[0, 0, 0], [1, 0, 1], [1, 1, 0]]


def test_the_table_by_distance_begins_with_the_neighbors(configured: Configured, random_saes: Path) -> None:
    result = run(configured(random_saes, "composition.max_distance=3"))
    rows = distance_rows(result.pairs)
    score = rows[rows.metric == "matching_score"]
    for variant in ("composed", "exact", "random"):
        found = score[score.variant == variant]
        assert sorted(zip(found.layer, found.distance, strict=True)) == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2)]
    first = score[(score.distance == 1) & (score.layer == 1)].set_index("variant")["value"]
    assert first["composed"] == first["exact"] == value(result, (1, 2), "matched", "matching_score")
    assert first["random"] == value(result, (1, 2), "random", "matching_score")
    mean = result.metrics["composition/matching_score/composed/distance_2"]
    assert mean == pytest.approx(score[(score.variant == "composed") & (score.distance == 2)]["value"].mean())
    assert distance_rows(result.pairs[result.pairs.layer_to - result.pairs.layer <= 1]).empty


def test_agreement_counts_what_the_exact_matching_pairs() -> None:
    exact, composed = torch.tensor([2, -1, 0, 1]), torch.tensor([2, 3, 1, 0])
    rows = agreement_rows(
        {"composed": Permutation(composed), "exact": Permutation(exact)}, Pair(Site(0), Site(2), Role.distant)
    )
    assert [(row.variant, row.n) for row in rows] == [("composed", 3)]
    assert rows[0].value == pytest.approx(1 / 3)


def test_reach_interpolates_and_is_censored() -> None:
    margins = np.array([[0.4, 0.4, -0.1, 0.4, 0.2], [0.2, 0.1, -0.1, 0.2, 0.0], [0.1, -0.1, -0.1, -0.2, 0.5]])
    assert reach([1, 2, 4], margins).tolist() == pytest.approx([4.0, 3.0, 0.0, 3.0, 2.0])


@given(st.lists(st.floats(0.01, 1.0), min_size=2, max_size=6), st.floats(0.001, 2.0))
def test_reach_of_falling_margins_grows_with_the_margin(steps: list[float], more: float) -> None:
    margins = 0.5 - np.cumsum([0.0, *steps])[:, None]
    distances = list(range(1, len(margins) + 1))
    assert reach(distances, margins)[0] <= reach(distances, margins + more)[0]


def test_the_headline_of_nothing_is_empty() -> None:
    assert composition_headline([]) == {}


def distant(study: Study) -> list[tuple[int, int]]:
    return [pair.layers for pair in job_pairs(study).distant]


def test_distant_pairs_follow_starts_and_span(configured: Configured, random_saes: Path) -> None:
    assert distant(configured(random_saes)) == []
    assert distant(configured(random_saes, "composition.max_distance=9")) == FAR
    assert distant(configured(random_saes, "composition.max_distance=2")) == [(0, 2), (1, 3)]
    assert distant(configured(random_saes, "composition.max_distance=3", "composition.starts=[1]")) == [(1, 3)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["composition.max_distance=1"], "must be 0"),
        (["composition.max_distance=-1"], "must be 0"),
        (["composition.max_distance=2", "layers.last=1"], "at least three layers"),
        (["composition.starts=[0]"], "compares nothing"),
        (["composition.max_distance=2", "composition.starts=[2]"], r"from layer 2; .* allow 0, 1"),
        (["composition.max_distance=2", "composition.starts=[0,0]"], "each layer once"),
    ],
)
def test_rules(configured: Configured, random_saes: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_config(configured(random_saes, *overrides))


@pytest.mark.figures
def test_listed_layers_are_matched_as_layers_at_that_distance_are(
    configured: Configured, random_saes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers 0, 2 and 3: what a span finds at a distance, a list finds for consecutive members."""
    with monkeypatch.context() as undrawn:
        undrawn.setattr("sae_match.experiment.job.draw_figures", lambda *_, **__: [])
        spanned = run(configured(random_saes, "composition.max_distance=2", output="span"))
    options = ["layers.list=[0,2,3]", "composition.max_distance=3", "layers.first=${sae.first_layer}"]
    listed = run(configured(random_saes, *options, "layers.last=${sae.last_layer}", output="list"))
    compared = dict.fromkeys(("matching_score", "weight_mse/W_dec", "matching_iou"), "matched")
    compared |= dict.fromkeys(("explained_variance", "r2"), "encode_permute_decode")
    for metric, variant in compared.items():
        assert value(listed, (0, 2), variant, metric) == value(spanned, (0, 2), "exact", metric)
        assert value(listed, (2, 3), variant, metric) == value(spanned, (2, 3), variant, metric)
    assert np.isfinite(value(listed, (0, 2), "encode_permute_decode", "delta_loss"))
    both = [value(listed, layers, "matched", "matching_score") for layers in ((0, 2), (2, 3))]
    assert listed.metrics["matching_score"] == pytest.approx(np.mean(both))
    paths = [listed.directory / "permutations" / f"layer_{a:02d}_to_{b:02d}.safetensors" for a, b in ((0, 2), (2, 3))]
    composed = Permutation.load(paths[0]).compose(Permutation.load(paths[1]))
    exact = Permutation.load(listed.directory / "permutations" / "layer_00_to_03.safetensors")
    agreement = float((composed.indices == exact.indices).float().mean())
    assert value(listed, (0, 3), "composed", "agreement") == pytest.approx(agreement)
    assert set(distance_rows(listed.pairs)["distance"]) == {2, 3}
    assert (listed.directory / "figures" / "composition.png").is_file()
