"""Whole jobs on SAEs other than JumpReLU: folding scales wired to the residual streams, and what is refused when."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sae_match import Permutation, UserError, load_sae, match
from sae_match.experiment import Result, run
from sae_match.language_model import load_language_model
from sae_match.saes import measure_scale, save_native
from sae_match.saes.formats.native import load_native
from sae_match.saes.site import Site
from sae_match.store import Store
from sae_match.study import Study
from sae_match.text import load_windows
from tests.builders import scientific
from tests.experiment.conftest import LAYERS
from tests.saes.layouts import K, write_dictionary, write_saelens, write_sparsify

Configured = Callable[..., Study]
SPARSIFY = ("sae=sparsify",)
FAST = ("dataset.windows_per_document=1", "evaluation.bootstrap_samples=10")


@pytest.fixture
def topk_saes(tmp_path: Path) -> Path:
    """sparsify's TopK SAEs of every layer, each another one."""
    root = tmp_path / "topk"
    for layer in range(LAYERS):
        folder = write_sparsify(root, f"layers.{layer}")
        tensors = load_sae(folder, layer)
        weights = {
            "encoder.weight": torch.roll(tensors.W_enc.T, layer, dims=0).contiguous(),
            "encoder.bias": 0.1 * torch.randn(24, generator=torch.Generator().manual_seed(layer)),
            "W_dec": torch.roll(tensors.W_dec, layer, dims=0).contiguous(),
            "b_dec": tensors.b_dec,
        }
        save_file(weights, folder / "sae.safetensors")
    return root


def value(result: Result, layer: int, variant: str, metric: str) -> float:
    table = result.pairs
    found = table[(table.layer == layer) & (table.variant == variant) & (table.metric == metric)]
    assert len(found) == 1, (layer, variant, metric)
    return float(found["value"].iloc[0])


@pytest.mark.parametrize("scale", ["estimated", "mean_activation", "max_activation", "decoder_norm"])
def test_topk_saes_through_the_full_evaluation(configured: Configured, topk_saes: Path, scale: str) -> None:
    cfg = configured(topk_saes, *SPARSIFY, *FAST, f"folding.scale={scale}")
    result = run(cfg)
    assert value(result, 0, "sae", "l0") == pytest.approx(K, abs=0.5)
    permutation = Permutation.load(result.directory / "permutations" / "layer_01_to_02.safetensors")
    assert permutation.provenance["folding_scale"] == scale
    # The same by hand: scale measured on the job's own residual streams, folded, matched.
    if scale != "decoder_norm":
        model = load_language_model(cfg.model, "cpu", Store(cfg.paths.cache_dir))
        windows = load_windows(cfg.dataset, model.tokenizer, Store(cfg.paths.cache_dir), cfg.model.bos)
        x = model.resid_post(windows.ids, [1, 2])
        a, b = (measure_scale(load_sae(topk_saes / f"layers.{i}", i), scale, x[i]) for i in (1, 2))
        assert value(result, 1, "sae", "mean_theta") == pytest.approx(float(a.theta.mean()), rel=1e-5)
        assert match(a, b).objective == pytest.approx(value(result, 1, "matched", "objective"), rel=1e-5)
        assert torch.equal(match(a, b).permutation.indices, permutation.indices)


def test_theta_units_use_the_scale(configured: Configured, topk_saes: Path) -> None:
    """A permuted splice in theta units differs between scales, in raw units it does not (same permutation)."""
    matching = ["matching=decoder", "folding=none"]
    found: dict[tuple[str, str], float] = {}
    for scale in ("decoder_norm", "mean_activation"):
        for units in ("theta", "raw"):
            options = [f"folding.scale={scale}", f"evaluation.splice_units={units}", *matching]
            result = run(configured(topk_saes, *SPARSIFY, *FAST, *options, output=f"{scale}-{units}"))
            found[scale, units] = value(result, 0, "encode_permute_decode", "delta_loss")
    assert found["decoder_norm", "raw"] == found["mean_activation", "raw"]
    assert found["decoder_norm", "theta"] != found["mean_activation", "theta"]


def test_topk_saes_without_folding_need_no_scale(configured: Configured, topk_saes: Path) -> None:
    result = run(configured(topk_saes, *SPARSIFY, *FAST, "folding=none"))
    a, b = (load_sae(topk_saes / f"layers.{i}", i) for i in (0, 1))
    matching = match(a, b, folding="none")
    assert value(result, 0, "matched", "objective") == pytest.approx(matching.objective)
    partners = b.W_dec[matching.permutation.indices]
    raw = float((a.W_dec - partners).square().mean())
    assert value(result, 0, "matched", "weight_mse/W_dec") == pytest.approx(raw, rel=1e-5)
    assert value(result, 0, "sae", "l0") == pytest.approx(K, abs=0.5)
    assert "mean_theta" not in set(result.pairs.metric) and {"matching_score", "delta_loss"} <= set(result.pairs.metric)
    with pytest.raises(UserError, match="no thresholds to fold by"):
        run(configured(topk_saes, *SPARSIFY, *FAST, "folding=none", "evaluation.splice_units=theta", output="theta"))


def test_stored_thresholds_without_text(configured: Configured, tmp_path: Path) -> None:
    for layer in range(LAYERS):
        write_dictionary(tmp_path / "d" / f"layer_{layer}", "AutoEncoderTopK", layer, seed=layer)
    options = ["sae=dictionary_learning", "sae.folder='layer_{layer}'", "evaluation=weights_only"]
    result = run(configured(tmp_path / "d", *options, "folding.scale=stored"))
    a, b = (load_sae(tmp_path / "d" / f"layer_{i}", i) for i in (0, 1))
    mse = 0.7 * (
        a.W_dec - b.W_dec[Permutation.load(result.directory / "permutations/layer_00_to_01.safetensors").indices]
    )
    assert value(result, 0, "matched", "weight_mse/W_dec") == pytest.approx(float(mse.square().mean()), rel=1e-4)


def test_scales_of_a_second_seed_are_measured_too(configured: Configured, random_saes: Path) -> None:
    cfg = configured(random_saes, *FAST, "folding.scale=max_activation")
    table = run(cfg).pairs
    assert set(table[table.variant == "ceiling"].layer) == {1}


def test_a_jumprelu_job_is_what_it_was(configured: Configured, random_saes: Path) -> None:
    auto = run(configured(random_saes, *FAST, output="auto")).metrics
    threshold = run(configured(random_saes, *FAST, "folding.scale=threshold", output="threshold")).metrics
    assert scientific(threshold) == scientific(auto)


def refused(cfg: Study, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job fails with `message` before the model is loaded and anything is matched."""

    def too_late(*_: object, **__: object) -> None:
        raise AssertionError("went too far")

    monkeypatch.setattr("sae_match.experiment.steps.prepare", too_late)
    monkeypatch.setattr("sae_match.experiment.steps.match_neighbors", too_late)
    with pytest.raises(UserError, match=message):
        run(cfg)
    status = json.loads((Path(cfg.paths.output_dir) / "status.json").read_text())
    assert status["state"] == "failed"


def test_auto_scale_of_topk_saes_is_refused_early(
    configured: Configured, topk_saes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(
        configured(topk_saes, *SPARSIFY), r"no thresholds to fold by.*folding\.scale=stored.*decoder_norm", monkeypatch
    )


def test_estimated_scale_of_relu_saes_needs_k(
    configured: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for layer in range(LAYERS):
        cfg = {"architecture": "standard", "metadata": {"hook_name": f"blocks.{layer}.hook_resid_post"}}
        write_saelens(tmp_path / "s" / f"layer_{layer}", cfg, seed=layer)
    options = ["sae=saelens", "sae.folder='layer_{layer}'", "folding.scale=estimated"]
    assert run(configured(tmp_path / "s", *options, *FAST, "folding.k=3", output="fine")).metrics["gap"] < 1e-6
    refused(configured(tmp_path / "s", *options), r"needs folding\.k", monkeypatch)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"metadata": {"hook_name": "blocks.LAYER.hook_mlp_out"}}, r"reads mlp_out, and activations are compared"),
        ({"metadata": {}}, r"do not say what the SAE reads.*sae\.site=resid_post"),
        (
            {"metadata": {"hook_name": "blocks.LAYER.hook_resid_post"}, "normalize_activations": "layer_norm"},
            "cannot encode, because its inputs are normalized",
        ),
    ],
    ids=["site", "unknown", "normalized"],
)
def test_saes_that_only_match(
    configured: Configured, tmp_path: Path, facts: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for layer in range(LAYERS):
        cfg = json.loads(json.dumps({"architecture": "jumprelu", **facts}).replace("LAYER", str(layer)))
        write_saelens(tmp_path / "s" / f"layer_{layer}", cfg, seed=layer)
    options = ["sae=saelens", "sae.folder='layer_{layer}'"]
    weights = run(configured(tmp_path / "s", *options, "evaluation=weights_only", output="weights"))
    assert weights.metrics["weight_mse/W_dec"] > 0
    refused(configured(tmp_path / "s", *options), message, monkeypatch)


def test_the_wrong_model_is_refused_from_the_first_header(
    configured: Configured, topk_saes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of later layers are not even looked for."""
    for layer in range(1, LAYERS):
        (topk_saes / f"layers.{layer}" / "sae.safetensors").unlink()
    cfg = configured(topk_saes, *SPARSIFY, "model.d_model=9", "folding.scale=decoder_norm")
    refused(cfg, "read d_model=8, but the model local has d_model=9", monkeypatch)


def test_a_model_of_another_depth_is_refused(
    configured: Configured, random_saes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(configured(random_saes, "sae.n_layers=5"), r"sae\.n_layers=5: local .* has 4 blocks", monkeypatch)


def test_features_of_different_sites_are_not_matched(configured: Configured, random_saes: Path) -> None:
    path = random_saes / "layer_02.safetensors"
    save_native(load_native(path).replace(site=Site.mlp_out), path)
    with pytest.raises(UserError, match="layer 2 reads mlp_out, layer 0 resid_post"):
        run(configured(random_saes, "evaluation=weights_only"))
