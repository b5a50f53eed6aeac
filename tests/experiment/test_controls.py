"""Controls in one job, on the tiny model and from the command line; what the configuration refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from sae_match import UserError, load_sae, match
from sae_match.experiment import run
from sae_match.metrics.bootstrap import Bootstrap
from sae_match.metrics.registry import DESCRIPTIONS
from sae_match.record.documents import read_documents
from sae_match.report.resampling import paired_difference
from sae_match.rules import check_config
from sae_match.study import Study
from tests.cli.test_command_line import run_in
from tests.tiny_setting import planned

Configured = Callable[..., Study]
MATCHINGS = {"matched", "vanilla", "random", "greedy", "nearest", "mutual", "frequency", "cosine", "correlation"}
FIT = ["dataset.documents=6", "evaluation.fit_documents=4"]


@pytest.fixture
def full(configured: Configured, random_saes: Path) -> Study:
    return configured(random_saes, "evaluation/controls=all", *FIT, "evaluation.min_count=1")


def pivot(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    return table[table.metric == metric].pivot(index="layer", columns="variant", values="value")


@pytest.mark.drawn
def test_every_control_is_evaluated_like_the_matching(full: Study, random_saes: Path) -> None:
    result = run(full)
    scores = pivot(result.pairs, "matching_score")
    assert MATCHINGS | {"ceiling"} == set(scores.columns)
    assert set(pivot(result.pairs, "weight_mse/W_dec").columns) >= MATCHINGS
    spliced = {f"encode_permute_decode_{name}" for name in MATCHINGS - {"matched"}} | {"encode_permute_decode"}
    for metric in ("explained_variance", "delta_loss"):
        assert spliced | {"linear_map", "layer_drop"} <= set(pivot(result.pairs, metric).columns)
    # The differences are the values' differences, and metrics.json holds their averages.
    for metric, ours, other in (
        ("matching_score", "matched", "correlation"),
        ("explained_variance", "encode_permute_decode", "linear_map"),
        ("delta_loss", "encode_permute_decode", "layer_drop"),
    ):
        values = pivot(result.pairs, metric)
        found = pivot(result.pairs, f"{metric}_difference")[other].dropna()
        assert found.to_numpy() == pytest.approx((values[ours] - values[other]).loc[found.index].to_numpy())
        assert result.metrics[f"{metric}_difference/{other}"] == pytest.approx(found.mean())
    # The greedy control is the greedy matching of the same parameters.
    a, b = (load_sae(random_saes / f"layer_{layer:02d}.safetensors") for layer in (0, 1))
    greedy, own = match(a, b, solver="greedy"), match(a, b)
    cosine = pivot(result.pairs, "decoder_cosine").loc[0]
    if not torch.equal(greedy.permutation.indices, own.permutation.indices):
        assert cosine["greedy"] != cosine["matched"]
    assert (pivot(result.pairs, "gap")["correlation"] == 0).all()
    assert (result.directory / "figures" / "controls.png").is_file()


def test_what_controls_are_fitted_on_is_recorded_and_not_evaluated(full: Study) -> None:
    text = json.loads((run(full).directory / "text.json").read_text())
    assert text["fit"]["key"] != text["key"]
    assert (text["documents"], text["fit"]["documents"]) == (6, 4)
    assert len(set(text["fit"]["titles"])) == 4


def test_documents_on_disk_give_back_the_jobs_own_intervals(full: Study) -> None:
    result = run(full)
    table = result.pairs.set_index(["layer", "layer_to", "variant", "metric"])
    stored = read_documents(result.directory / "documents.parquet")
    assert {key.metric for key in stored} == {
        "matching_score",
        "matching_iou",
        "explained_variance",
        "delta_loss",
        "l0",
    }
    bootstrap = Bootstrap(6, samples=50, seed=0)
    for key, sums in stored.items():
        statistic = DESCRIPTIONS[key.metric].statistic
        assert statistic is not None
        again = bootstrap.from_sums(sums, statistic)
        row = table.loc[key[:4]]
        assert [again.value, *again.interval] == pytest.approx([row.value, row.low, row.high], abs=1e-9), key


def test_jobs_are_compared_in_pairs(configured: Configured, random_saes: Path) -> None:
    one = run(configured(random_saes, output="one"))
    other = run(configured(random_saes, "matching=decoder", output="other"))
    found = paired_difference(one.directory, other.directory, "matching_score")
    assert found.value == pytest.approx(one.metrics["matching_score"] - other.metrics["matching_score"])
    assert found.low <= found.value <= found.high
    baseline = paired_difference(one.directory, other.directory, "delta_loss", "layer_drop")
    assert baseline == (0.0, 0.0, 0.0)
    run(configured(random_saes, "evaluation=weights_only", output="bare"))
    with pytest.raises(UserError, match="evaluation=full writes one"):
        paired_difference(one.directory, one.directory.parent / "bare", "matching_score")


def test_dead_features_stay_aside_in_every_control(configured: Configured, random_saes: Path) -> None:
    extra = ["evaluation/controls=[greedy,correlation]", "matching.dead_features=exclude", *FIT]
    result = run(configured(random_saes, *extra))
    counts = result.pairs[result.pairs.metric == "decoder_cosine"].pivot(index="layer", columns="variant", values="n")
    assert set(counts.columns) == {"matched", "greedy", "correlation", "ceiling"}
    pairs = counts.drop(columns="ceiling").dropna()
    assert (pairs.nunique(axis=1) == 1).all()
    aside = pivot(result.pairs, "features_aside")["sae"]
    assert (pairs["matched"] <= 24 - aside.loc[pairs.index]).all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluation/controls=[correlation]", "evaluation.level=weights_only"], "need activations"),
        (["evaluation/controls=[greedy]", "matching.n_pairs=3"], "greedy know no such limit"),
        (["evaluation/controls=[greedy,random]", "evaluation.controls.greedy.name=random"], "are called random"),
        (["evaluation/controls=[linear_map]", "dataset.documents=0"], "leaves none to fit linear_map on"),
        (["evaluation/controls=[]", "composition.max_distance=2"], "add random"),
        (["evaluation/controls=[]", "judging=offline"], "add vanilla and random"),
        (["evaluation.fit_documents=0"], "must be greater than or equal to 1"),
    ],
)
def test_controls_that_cannot_be_are_refused(
    configured: Configured, random_saes: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_config(configured(random_saes, *overrides))


def test_the_plan_counts_fitting_text_and_correlations(configured: Configured, random_saes: Path) -> None:
    plain, wide = (
        planned(configured(random_saes, *FIT, *more)) for more in ([], ["evaluation/controls=[correlation]"])
    )
    assert [phase.name for phase in wide.phases if phase.name not in {p.name for p in plain.phases}] == [
        "match by correlation"
    ]
    assert wide.text is not None
    assert wide.text.fit_windows == 8
    short = configured(random_saes, *FIT, "evaluation/controls=[correlation]", "solver.memory_limit_gib=0.25")
    with pytest.raises(UserError, match="solver=correlation needs"):
        short.evaluation.controls["correlation"].check_memory(8192, 8192, 8)


def test_the_command_runs_with_controls(
    tmp_path: Path, random_saes: Path, model_directory: Path, text_directory: Path
) -> None:
    done = run_in(
        tmp_path, "sae=native", f"sae.root={random_saes}", "model=local", f"model.path={model_directory}",
        "dataset=local", f"dataset.path={text_directory}", "dataset.documents=5", "dataset.window_tokens=12",
        "layers.first=0", "layers.last=1", "tracking=none", "paths.output_dir=out", "device=cpu",
        "evaluation/controls=[nearest,correlation,linear_map]", "evaluation.bootstrap_samples=20",
    )  # fmt: skip
    assert done.code == 0, done.err
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {"matching_score_difference/nearest", "explained_variance/linear_map"} <= metrics.keys()
    assert "matching_score/vanilla" not in metrics
