"""`run`, the whole job in one process: closed forms, sharing, intervals, failure."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import sae_match.evaluation.splice_losses as splice_losses_module
from sae_match import Permutation, UserError, load_sae
from sae_match.evaluation import evaluate_pair
from sae_match.experiment import Result, losses, run
from sae_match.language_model import LanguageModel, load_language_model
from sae_match.record.pairs import read_pairs
from sae_match.store import Store
from sae_match.study import Study
from sae_match.text import load_windows
from tests.experiment.conftest import StandardJob

Configured = Callable[..., Study]


def value(result: Result, layer: int, variant: str, metric: str) -> float:
    table = result.pairs
    found = table[(table.layer == layer) & (table.variant == variant) & (table.metric == metric)]
    assert len(found) == 1, (layer, variant, metric)
    return float(found["value"].iloc[0])


def test_perfect_saes_explain_everything_and_cost_nothing(configured: Configured, perfect_saes: Path) -> None:
    result = run(configured(perfect_saes))
    for layer in range(3):
        assert value(result, layer, "encode_decode_current", "explained_variance") == pytest.approx(1.0, abs=1e-9)
        assert value(result, layer, "encode_decode_current", "r2") == pytest.approx(1.0, abs=1e-9)
        assert value(result, layer, "encode_decode_current", "delta_loss") == pytest.approx(0.0, abs=1e-5)
        # The planted permutation carries layer t's residual over unchanged: the same as dropping the block.
        assert value(result, layer, "matched", "weight_mse/W_dec") == 0.0
        for metric in ("explained_variance", "delta_loss"):
            carried = value(result, layer, "encode_permute_decode", metric)
            assert carried == pytest.approx(value(result, layer, "layer_drop", metric), abs=1e-5)
    assert result.metrics["gap"] == 0.0
    assert result.metrics["l0/sae"] == pytest.approx(8.0)  # every dimension has one of its two signs


def test_record_holds_what_was_returned(standard_job: StandardJob) -> None:
    result = standard_job.result
    assert json.loads((result.directory / "metrics.json").read_text()) == pytest.approx(result.metrics)
    stored = read_pairs(result.directory / "pairs.csv")
    assert len(stored) == len(result.pairs)
    features = pd.read_parquet(result.directory / "features.parquet")
    assert list(features.groupby("layer").size()) == [24, 24, 24]
    assert (features["together"] <= features["active"]).all()
    pooled = features.groupby("layer")[["together", "active"]].sum()
    for layer, row in pooled.iterrows():
        expected = value(result, int(layer), "matched", "matching_score")
        assert row["together"] / row["active"] == pytest.approx(expected)
    permutation = Permutation.load(result.directory / "permutations" / "layer_01_to_02.safetensors")
    assert permutation.provenance["layer_a"] == 1
    assert permutation.indices.tolist() == features[features.layer == 1]["partner"].tolist()


def test_delta_loss_equals_a_plain_hook(configured: Configured, random_saes: Path) -> None:
    """The pipeline's layer_drop and encode_decode_current against full forward passes with an ordinary hook."""
    cfg = configured(random_saes, "dataset.windows_per_document=1")
    result = run(cfg)
    model = load_language_model(cfg.model, "cpu", Store(cfg.paths.cache_dir))
    windows = load_windows(cfg.dataset, model.tokenizer, Store(cfg.paths.cache_dir), cfg.model.bos)
    residual = model.resid_post(windows.ids, [1, 2])
    sae = load_sae(random_saes / "layer_02.safetensors")
    for name, stand_in in (("layer_drop", residual[1]), ("encode_decode_current", sae(residual[2]))):
        replaced = stand_in.clone()
        replaced[:, 0] = residual[2][:, 0]
        spliced = hooked_losses(model, 2, replaced, windows.ids)
        delta = (spliced - model.token_losses(windows.ids))[:, 1:].double().mean()
        assert value(result, 1, name, "delta_loss") == pytest.approx(float(delta), abs=1e-5)


def hooked_losses(model: LanguageModel, layer: int, residual: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    handle = model.blocks[layer].register_forward_hook(lambda *_: residual)
    try:
        logits = model.hf(input_ids=ids, use_cache=False).logits.float()
    finally:
        handle.remove()
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(
        len(ids), -1
    )


def test_ceiling_is_the_same_layer_match_of_two_seeds(standard_job: StandardJob) -> None:
    table = standard_job.result.pairs
    ceiling = table[table.variant == "ceiling"]
    assert set(ceiling.layer) == {1}
    assert set(ceiling.layer_to) == {1}
    assert {"matching_score", "weight_mse/W_dec", "decoder_cosine_above_0.7"} <= set(ceiling.metric)


def test_a_second_job_captures_nothing_and_reuses_the_shared_splices(
    configured: Configured, random_saes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(configured(random_saes))
    calls: list[str] = []
    inner = splice_losses_module.splice_losses

    def counting(*arguments: object, **options: object) -> object:
        calls.extend(splice.label for splice in arguments[5].values())  # type: ignore[attr-defined]
        return inner(*arguments, **options)  # type: ignore[arg-type]

    def no_forward(*_: object) -> None:
        raise AssertionError("residual streams were captured again")

    monkeypatch.setattr(losses, "splice_losses", counting)
    monkeypatch.setattr(LanguageModel, "stream_resid_post", no_forward)
    again = run(configured(random_saes, output="again"))
    assert calls == []
    assert repeatable(again.metrics) == repeatable(first.metrics)
    assert "solver/row_remakes" in repeatable(first.metrics)
    run(configured(random_saes, "matching=decoder", output="decoder"))
    assert set(calls) == {"encode-permute-decode (matched)"}  # the baselines do not depend on the matching


def test_rerun_all_computes_losses_and_matchings_again_and_shares_the_inputs(
    configured: Configured, random_saes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a change of a splice's code, which no key knows."""
    options = ("layers.last=1", "sae.ceiling_filename=null")
    first = run(configured(random_saes, *options))

    def shifted(*arguments: Any, **options: Any) -> Any:
        return {
            name: losses + 1.0 for name, losses in splice_losses_module.splice_losses(*arguments, **options).items()
        }

    def no_forward(*_: object) -> None:
        raise AssertionError("residual streams were captured again")

    monkeypatch.setattr(losses, "splice_losses", shifted)
    monkeypatch.setattr(LanguageModel, "stream_resid_post", no_forward)
    name = "delta_loss/encode_permute_decode"
    assert run(configured(random_saes, *options, output="again")).metrics[name] == first.metrics[name]
    again = run(configured(random_saes, *options, "rerun=all", output="all")).metrics
    assert again[name] == pytest.approx(first.metrics[name] + 1.0)
    assert again["solver_seconds"] != first.metrics["solver_seconds"], "the matching is solved again"
    later = run(configured(random_saes, *options, output="later")).metrics
    assert later[name] == again[name], "the new losses have replaced the old ones"


def repeatable(metrics: dict[str, float]) -> dict[str, float]:
    """Without what depends on the machine's mood."""
    return {name: x for name, x in metrics.items() if "seconds" not in name and name != "solver/peak_memory_gib"}


def test_splice_units_change_only_the_permuted_splices(configured: Configured, random_saes: Path) -> None:
    theta = run(configured(random_saes, "evaluation.splice_units=theta", output="theta"))
    raw = run(configured(random_saes, "evaluation.splice_units=raw", output="raw"))
    keys = ["layer", "layer_to", "variant", "metric"]
    both = theta.pairs.merge(raw.pairs, on=keys, suffixes=("_theta", "_raw"))
    # Differences between splices follow from the splices.
    plain = ~both.metric.str.startswith("solver") & ~both.metric.str.endswith(("_difference", "_to_ceiling"))
    changed = both[(both.value_theta != both.value_raw) & plain]
    assert set(changed.metric) <= {"explained_variance", "r2", "fvu", "delta_loss"}
    assert set(changed.variant) == {
        "encode_permute_decode", "encode_permute_decode_random", "encode_permute_decode_vanilla", "ceiling",
    }  # fmt: skip


def test_intervals_enclose_their_values(standard_job: StandardJob) -> None:
    table = standard_job.result.pairs.dropna(subset=["low"])
    assert len(table) > 30
    assert (table.low <= table.high).all()
    per_feature = table.metric == "matching_score_per_feature"  # a biased statistic: its interval may miss it
    inside = (table.low <= table.value + 1e-9) & (table.value <= table.high + 1e-9)
    assert inside[~per_feature].mean() > 0.95


def test_the_batch_changes_no_number(configured: Configured, random_saes: Path, tmp_path: Path) -> None:
    controls = "evaluation/controls=[vanilla,random,greedy,correlation,linear_map]"
    tables = []
    for batch in (1, 7):
        own = [f"evaluation.batch_windows={batch}", f"paths.cache_dir={tmp_path / f'cache_{batch}'}"]
        fit = ["dataset.documents=6", "evaluation.fit_documents=4", "layers.last=1"]
        table = run(configured(random_saes, controls, *fit, *own, output=f"batch_{batch}")).pairs
        table = table[~table.metric.str.startswith("solver")]
        tables.append(table.set_index(["layer", "layer_to", "variant", "metric"])[["value", "low", "high"]])
    pd.testing.assert_frame_equal(*tables, rtol=1e-6, atol=1e-6)


def test_weights_only_needs_neither_model_nor_text(configured: Configured, random_saes: Path) -> None:
    result = run(configured(random_saes, "evaluation=weights_only", "model.path=/absent", "dataset.path=/absent"))
    assert "matching_score" not in result.metrics
    assert math.isfinite(result.metrics["weight_mse/W_dec"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.d_model=9"], "config.json says 8: correct it"),
        (["model.n_layers=5"], "config.json says 4: correct it"),
        (["layers.last=4"], "has blocks 0..3. Set layers.first"),
        (["dataset.documents=11"], "10"),
        (["dataset.path=/absent"], "/absent"),
        (["model.path=/absent"], "/absent"),
        (["dataset.window_tokens=31"], "31"),
        (["dataset.window_tokens=65"], "context of local is 64 tokens"),
        (["paths.cache_dir=/proc/absent"], "paths.cache_dir=DIR"),
    ],
)
def test_bad_input_fails_before_matching_and_is_recorded(
    configured: Configured, random_saes: Path, overrides: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_matching(*_: object) -> None:
        raise AssertionError("matching began")

    monkeypatch.setattr("sae_match.experiment.steps.match_neighbors", no_matching)
    cfg = configured(random_saes, *overrides)
    with pytest.raises(UserError, match=message):
        run(cfg)
    status = json.loads((Path(cfg.paths.output_dir) / "status.json").read_text())
    assert status["state"] == "failed"
    assert message in status["error"]["message"]


def test_the_library_face_gives_the_jobs_numbers(standard_job: StandardJob) -> None:
    cfg, random_saes, result = standard_job
    model = load_language_model(cfg.model, "cpu", Store(cfg.paths.cache_dir))
    windows = load_windows(cfg.dataset, model.tokenizer, Store(cfg.paths.cache_dir), cfg.model.bos)
    x = model.resid_post(windows.ids, [0, 1])
    a, b = (load_sae(random_saes / f"layer_{i:02d}.safetensors") for i in (0, 1))
    permutation = Permutation.load(result.directory / "permutations" / "layer_00_to_01.safetensors")
    evaluation = evaluate_pair(a, b, permutation, x[0], x[1], windows.document)
    found = {(row.metric, row.variant): row.value for row in evaluation.rows}
    for metric, variant in (("matching_score", "matched"), ("explained_variance", "encode_permute_decode")):
        assert found[metric, variant] == pytest.approx(value(result, 0, variant, metric), abs=1e-6)


def test_a_failed_second_attempt_keeps_the_first_results(configured: Configured, random_saes: Path) -> None:
    cfg = configured(random_saes, "evaluation=weights_only")
    first = run(cfg)
    path = random_saes / "layer_02.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="not a readable safetensors"):
        run(cfg)
    assert json.loads((first.directory / "metrics.json").read_text()) == first.metrics
    assert len(list((first.directory / "permutations").iterdir())) == 3


def test_a_second_seed_must_be_another_sae(configured: Configured, random_saes: Path) -> None:
    shutil.copy(random_saes / "layer_01.safetensors", random_saes / "layer_01_seed_1.safetensors")
    with pytest.raises(UserError, match="no second seed"):
        run(configured(random_saes))


def test_a_broken_tracker_does_not_fail_a_finished_job(
    configured: Configured, random_saes: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ConnectionError("gone")

    monkeypatch.setattr("sae_match.experiment.outputs._mirror", broken)
    result = run(configured(random_saes, "evaluation=weights_only", "tracking=wandb_offline"))
    assert json.loads((result.directory / "status.json").read_text())["state"] == "done"
    assert "the W&B run is incomplete" in caplog.text
