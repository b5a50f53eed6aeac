"""Layouts of every dialect: by definition where SAELens cannot be asked, sites and layers, detection, headers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_match import SparseAutoencoder, UserError, evaluate_pair, load_sae
from sae_match.matching import Permutation
from sae_match.saes import ActivationKind, SaeFormat, SaeSource, Site
from sae_match.saes.loading import format_named
from tests.saes.layouts import (
    D,
    F,
    K,
    dictionary_state,
    random_tensors,
    write_dictionary,
    write_gemma_scope,
    write_gemma_scope_2,
    write_llama_scope,
    write_saelens,
    write_sparsify,
)

RESID: dict[str, Any] = {"architecture": "standard", "metadata": {"hook_name": "blocks.3.hook_resid_post"}}


def config(dialect: str, root: Path, **fields: Any) -> SaeFormat:
    return format_named(dialect)(name="test", root=str(root), last_layer=30, **fields)


def x() -> torch.Tensor:
    return torch.randn(50, D, generator=torch.Generator().manual_seed(3))


def test_sparsify_by_definition(tmp_path: Path) -> None:
    """Top-k of relu((x - b_dec) @ W_enc.T + bias), decoded by rows of W_dec (sparsify/sparse_coder.py)."""
    t, sae = random_tensors(), load_sae(write_sparsify(tmp_path), 3)
    values, indices = torch.relu((x() - t["b_dec"]) @ t["W_enc"] + t["b_enc"]).topk(K, dim=-1)
    expected = (values[..., None] * t["W_dec"][indices]).sum(dim=1) + t["b_dec"]
    torch.testing.assert_close(sae(x()), expected, rtol=1e-5, atol=1e-5)
    assert (sae.site, sae.activation.k) == (Site.resid_post, K)


@pytest.mark.parametrize(
    ("hookpoint", "changes", "site"),
    [
        ("layers.3", {"num_latents": F}, Site.resid_post),
        ("h.3", {}, Site.resid_post),
        ("gpt_neox.layers.3", {}, Site.resid_post),
        ("layers.3.mlp", {}, Site.mlp_out),
        ("layers.3.self_attn", {}, Site.attn_out),
        ("layers.3.mlp.down_proj", {}, Site.unknown),
        ("layers.3.mlp", {"transcode": True}, Site.transcoder),
        ("embed_tokens", {}, Site.unknown),
    ],
)
def test_sparsify_sites(tmp_path: Path, hookpoint: str, changes: dict[str, Any], site: Site) -> None:
    assert load_sae(write_sparsify(tmp_path, hookpoint, **changes)).site is site


def test_sparsify_transcoder_with_skip_connection_only_matches(tmp_path: Path) -> None:
    sae = load_sae(write_sparsify(tmp_path, "layers.3.mlp", transcode=True, skip_connection=True))
    torch.testing.assert_close(sae.b_enc, random_tensors()["b_enc"])  # b_dec is not subtracted
    with pytest.raises(UserError, match="skip connection is not part of its features"):
        sae.encode(x())


def test_auto_encoder_new_by_definition(tmp_path: Path) -> None:
    t, sae = random_tensors(), load_sae(write_dictionary(tmp_path / "d", "AutoEncoderNew"), 3)
    expected = torch.relu(x() @ t["W_enc"] + t["b_enc"])
    torch.testing.assert_close(sae.encode(x()), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae(x()), expected @ t["W_dec"] + t["b_dec"], rtol=1e-5, atol=1e-5)


def test_dictionary_thresholds(tmp_path: Path) -> None:
    topk = load_sae(write_dictionary(tmp_path / "topk", "AutoEncoderTopK"), 3)
    assert (topk.activation.kind, topk.activation.k) == (ActivationKind.topk, K)
    assert topk.activation.stored_threshold == pytest.approx(0.7)
    batch = load_sae(write_dictionary(tmp_path / "batch", "BatchTopKSAE"), 3)
    assert batch.activation.kind is ActivationKind.jumprelu
    assert batch.threshold.tolist() == pytest.approx([0.7] * F)
    for dict_class in ("AutoEncoderTopK", "BatchTopKSAE"):
        folder = write_dictionary(tmp_path / f"unset {dict_class}", dict_class)
        torch.save(dictionary_state(dict_class) | {"threshold": torch.tensor(-1.0)}, folder / "ae.pt")
        unset = load_sae(folder, 3)
        assert unset.activation.stored_threshold is None
        assert (unset.match_only is None) == (dict_class == "AutoEncoderTopK")


@pytest.mark.parametrize(
    ("changes", "site"),
    [
        ({}, Site.resid_post),
        ({"submodule_name": None}, Site.unknown),
        ({"submodule_name": "mlp_3"}, Site.mlp_out),
        ({"submodule_name": "attention_3"}, Site.attn_out),
        ({"submodule_name": "ln_3"}, Site.unknown),
    ],
)
def test_dictionary_sites(tmp_path: Path, changes: dict[str, Any], site: Site) -> None:
    folder = write_dictionary(tmp_path / "d", "AutoEncoder", **changes)
    assert load_sae(folder, 3).site is site
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(facts | {"buffer": {"io": "in"}}))
    assert load_sae(folder, 3).site is Site.unknown


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("blocks.3.hook_resid_post", Site.resid_post),
        ("blocks.3.hook_resid_pre", Site.resid_pre),
        ("blocks.3.hook_resid_mid", Site.resid_mid),
        ("blocks.3.hook_mlp_out", Site.mlp_out),
        ("blocks.3.attn.hook_z", Site.attn_out),
        ("blocks.3.ln2.hook_normalized", Site.unknown),
        ("model.layers.3", Site.resid_post),
        ("transformer.h.3", Site.resid_post),
        ("gpt_neox.layers.3.mlp", Site.mlp_out),
        ("model.layers.3.self_attn", Site.attn_out),
        ("model.layers.3.input_layernorm", Site.unknown),
        ("", Site.unknown),
    ],
)
def test_saelens_sites(tmp_path: Path, hook: str, site: Site) -> None:
    assert load_sae(write_saelens(tmp_path / "s", {**RESID, "metadata": {"hook_name": hook}})).site is site


def test_the_layer_in_a_hook_of_a_transformers_model_is_compared(tmp_path: Path) -> None:
    folder = write_saelens(tmp_path / "s", {**RESID, "metadata": {"hook_name": "model.layers.3"}})
    with pytest.raises(UserError, match="asked for layer 4, but the file is of layer 3"):
        load_sae(folder, 4)


def test_input_of_the_next_block_is_the_output_of_this_one(tmp_path: Path) -> None:
    hook = {"hook_name": "blocks.4.hook_resid_pre"}
    write_saelens(tmp_path / "blocks.4.hook_resid_pre", {**RESID, "metadata": hook})
    source = SaeSource(config("saelens", tmp_path, folder="blocks.{next}.hook_resid_pre"))
    assert source.files(3)[0] == "blocks.4.hook_resid_pre/cfg.json"
    assert source.load(3).site is Site.resid_post
    with pytest.raises(UserError, match=r"asked for layer 2, but the file is of layer 4 \(resid_pre\).*\{next\}"):
        load_sae(tmp_path / "blocks.4.hook_resid_pre", 2)


def test_saelens_norm_scaling_factor_is_folded(tmp_path: Path) -> None:
    """(s x - b_dec) encoded, and the reconstruction divided by s: SAELens' fold_activation_norm_scaling_factor."""
    cfg = {**RESID, "normalize_activations": "expected_average_only_in"}
    folder, s = write_saelens(tmp_path / "layer_3", cfg), 2.5
    plain = load_sae(write_saelens(tmp_path / "plain", RESID), 3)
    scaled = SaeSource(config("saelens", tmp_path, folder="layer_{layer}", norm_scaling_factors={3: s})).load(3)
    torch.testing.assert_close(scaled.encode(x()), plain.encode(s * x()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scaled(x()), plain(s * x()) / s, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match=r"expected_average_only_in.*sae\.norm_scaling_factors"):
        load_sae(folder, 3).encode(x())


@pytest.mark.parametrize("normalization", ["constant_norm_rescale", "layer_norm", "covariance_whitening"])
def test_saelens_other_normalizations_only_match(tmp_path: Path, normalization: str) -> None:
    sae = load_sae(write_saelens(tmp_path / "s", {**RESID, "normalize_activations": normalization}), 3)
    plain = load_sae(write_saelens(tmp_path / "plain", RESID), 3)
    assert torch.equal(sae.W_enc, plain.W_enc)
    assert sae.content_hash != plain.content_hash
    with pytest.raises(UserError, match=normalization):
        sae(x())


def test_saelens_of_a_processed_model_only_matches(tmp_path: Path) -> None:
    processed = {
        "hook_name": "blocks.3.hook_resid_post",
        "model_from_pretrained_kwargs": {"center_writing_weights": True},
    }
    with pytest.raises(UserError, match="center_writing_weights"):
        load_sae(write_saelens(tmp_path / "s", {**RESID, "metadata": processed})).encode(x())


def test_settings_that_only_the_registry_of_saelens_knows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flat = {"hook_name": "blocks.3.hook_resid_pre", "model_name": "gpt2-small", "normalize_activations": "none"}
    known = (
        ("GPT2-Small-SAEs-Reformatted", "center_writing_weights"),
        ("models--JoshEngels--Mistral-7B-Residual-Stream-SAEs", "constant_norm_rescale"),
    )
    for name, message in known:
        folder = write_saelens(tmp_path / name / "blocks.3.hook_resid_pre", flat)
        with pytest.raises(UserError, match=message):
            load_sae(folder).encode(x())
    assert not caplog.text
    write_saelens(tmp_path / "copy" / "layer_3", flat)
    load_sae(tmp_path / "copy" / "layer_3").encode(x())
    assert "jbloom/GPT2-Small-SAEs-Reformatted" in caplog.text and "sae.repo_id" in caplog.text
    named = config("saelens", tmp_path / "copy", folder="layer_{next}", repo_id="tommmcgrath/gpt2-small-mlp-out-saes")
    with pytest.raises(UserError, match="center_writing_weights"):
        SaeSource(named).load(2).encode(x())


@pytest.mark.parametrize(
    ("architecture", "message"),
    [("batchtopk", "training checkpoint"), ("temporal", "architecture temporal"), ("topk", "k must be a positive int")],
)
def test_saelens_unsupported(tmp_path: Path, architecture: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_sae(write_saelens(tmp_path / "s", {"architecture": architecture}))


def test_saelens_old_scaling_factors(tmp_path: Path) -> None:
    ones = write_saelens(tmp_path / "ones", RESID, scaling_factor=torch.ones(F))
    assert load_sae(ones).content_hash == load_sae(write_saelens(tmp_path / "plain", RESID)).content_hash
    with pytest.raises(UserError, match="scaling_factor is not all ones"):
        load_sae(write_saelens(tmp_path / "twos", RESID, scaling_factor=torch.full((F,), 2.0)))


def test_llama_scope_in_half_precision_is_computed_in_float32(tmp_path: Path) -> None:
    half = load_sae(write_llama_scope(tmp_path / "half", dtype=torch.bfloat16), 3)
    full = load_sae(write_llama_scope(tmp_path / "full"), 3)
    torch.testing.assert_close(half.W_dec.norm(dim=1), torch.ones(F), rtol=1e-6, atol=0)
    torch.testing.assert_close(half.W_enc, full.W_enc, rtol=2**-6, atol=1e-3)
    assert half.threshold.tolist() == pytest.approx([0.4] * F)


def test_llama_scope_transcoder_and_variants(tmp_path: Path) -> None:
    hooks = {"hook_point_in": "blocks.3.ln2.hook_normalized", "hook_point_out": "blocks.3.hook_mlp_out"}
    assert load_sae(write_llama_scope(tmp_path / "tc", **hooks), 3).site is Site.transcoder
    for change in ({"act_fn": "topk"}, {"norm_activation": "token-wise"}, {"sparsity_include_decoder_norm": False}):
        with pytest.raises(UserError, match=f"{next(iter(change))}="):
            load_sae(write_llama_scope(tmp_path / next(iter(change)), **change))


def test_gemma_scope_2_layout(tmp_path: Path) -> None:
    for layer, site in ((3, "resid_post_all"), (3, "resid_post"), (3, "mlp_out_all")):
        write_gemma_scope_2(tmp_path, layer, site)
    facts = {"width": "16k", "l0": "small"}
    source = SaeSource(config("gemma_scope_2", tmp_path, **facts))
    assert source.load(3).site is Site.resid_post
    assert source.load(3).content_hash == SparseAutoencoder(**random_tensors(3)).content_hash
    four = SaeSource(config("gemma_scope_2", tmp_path, **facts, every_layer=False))
    assert four.locate([3])[3].parts[-3] == "resid_post"
    mlp = SaeSource(config("gemma_scope_2", tmp_path, **facts, site=Site.mlp_out))
    assert mlp.load(3).site is Site.mlp_out
    affine = config("gemma_scope_2", tmp_path, **facts, site=Site.transcoder, affine=True)
    assert SaeSource(affine).files(3) == ("transcoder_all/layer_3_width_16k_l0_small_affine/params.safetensors",)


def test_gemma_scope_sites_follow_the_release(tmp_path: Path) -> None:
    for release, site in (("res", "resid_post"), ("mlp", "mlp_out"), ("att", "attn_out")):
        path = write_gemma_scope(tmp_path / f"gemma-scope-2b-pt-{release}")
        assert load_sae(path).site == site
    assert load_sae(write_gemma_scope(tmp_path / "mine")).site is Site.unknown
    wrong = config("gemma_scope", tmp_path / "gemma-scope-2b-pt-mlp", width="16k", l0="59", site=Site.resid_post)
    with pytest.raises(UserError, match=r"sae\.site=resid_post, but the file reads mlp_out"):
        SaeSource(wrong).load(3)


WRITERS: dict[str, Callable[[Path], Path]] = {
    "gemma_scope": write_gemma_scope,
    "gemma_scope_2": write_gemma_scope_2,
    "llama_scope": write_llama_scope,
    "saelens": lambda root: write_saelens(root / "layer_3", RESID),
    "sparsify": write_sparsify,
    "dictionary_learning": lambda root: write_dictionary(root / "layer_3", "AutoEncoder"),
}
WEIGHTS = {
    "llama_scope": "checkpoints/final.safetensors",
    "saelens": "sae_weights.safetensors",
    "sparsify": "sae.safetensors",
    "dictionary_learning": "ae.pt",
}


@pytest.mark.parametrize("dialect", WRITERS)
def test_dialects_are_detected_from_folder_and_file(tmp_path: Path, dialect: str) -> None:
    path = WRITERS[dialect](tmp_path)
    sae = load_sae(path)
    assert sae.content_hash == load_sae(path, 3, dialect=dialect).content_hash
    other = path / WEIGHTS[dialect] if dialect in WEIGHTS else path.parent
    if dialect != "gemma_scope":
        assert load_sae(other).content_hash == sae.content_hash


@pytest.mark.parametrize("dialect", WRITERS)
def test_headers_need_no_tensors(tmp_path: Path, dialect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "gemma-scope-2b-pt-res"  # says the site where the dialect's files do not
    path = WRITERS[dialect](root)

    def no_data(*_: object, **__: object) -> None:
        raise AssertionError("tensors were read")

    for target in ("numpy.load", "torch.load", "sae_match.saes.formats.reading.read_safetensors"):
        monkeypatch.setattr(target, no_data)
    patterns = {
        "llama_scope": "Llama3_1-8B-Base-L{layer}R-8x",
        "saelens": "layer_{layer}",
        "sparsify": "layers.{layer}",
        "dictionary_learning": "layer_{layer}",
    }
    gemma = {"gemma_scope": {"width": "16k", "l0": "59"}, "gemma_scope_2": {"width": "16k", "l0": "small"}}
    fields: dict[str, Any] = gemma.get(dialect) or {"folder": patterns[dialect]}
    source = SaeSource(config(dialect, root, **fields))
    header = source.header(3)
    assert (header.d_model, header.width, header.site) == (D, F, Site.resid_post)
    for name in source.files(3):
        assert (root / name).is_file()
    assert path.exists()


@pytest.mark.parametrize("dialect", WRITERS)
def test_another_layer_than_asked_for_is_refused(tmp_path: Path, dialect: str) -> None:
    with pytest.raises(UserError, match="asked for layer 5, but the file is of layer 3"):
        load_sae(WRITERS[dialect](tmp_path), 5)


def test_another_d_model_than_configured_is_refused(tmp_path: Path) -> None:
    write_sparsify(tmp_path)
    with pytest.raises(UserError, match=r"reads d_model=8, but sae\.d_model=9"):
        SaeSource(config("sparsify", tmp_path, folder="layers.{layer}", d_model=9)).header(3)


def test_detection_refuses_what_is_not_clear(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fits no known dialect"):
        load_sae(tmp_path)
    folder = write_saelens(tmp_path / "both", RESID)
    write_sparsify(tmp_path, "both", k=K)
    with pytest.raises(UserError, match=r"fits several dialects \(saelens, sparsify\)"):
        load_sae(folder)
    weights = write_saelens(tmp_path / "bare", {**RESID, "architecture": "jumprelu"}) / "sae_weights.safetensors"
    (weights.parent / "cfg.json").unlink()
    with pytest.raises(UserError, match=r"SAE file not found: .*cfg\.json"):
        load_sae(weights)
    assert load_sae(weights, dialect="native").width == F
    with pytest.raises(UserError, match="dialect=mine: must be one of native, gemma_scope"):
        load_sae(weights, dialect="mine")


def test_sparsify_with_several_seeds(tmp_path: Path) -> None:
    folder = write_sparsify(tmp_path, "layers.3/seed0")
    assert load_sae(folder, 3).site is Site.resid_post
    with pytest.raises(UserError, match="asked for layer 4, but the file is of layer 3"):
        load_sae(folder, 4)


def test_embeddings_of_gemma_scope_are_no_residual_stream(tmp_path: Path) -> None:
    path = write_gemma_scope(tmp_path / "gemma-scope-2b-pt-res")
    moved = tmp_path / "gemma-scope-2b-pt-res" / "embedding"
    path.parents[2].rename(moved)
    sae = load_sae(moved / path.relative_to(path.parents[2]))
    assert sae.site is Site.embedding
    with pytest.raises(UserError, match="reads token embeddings"):
        sae.encode(x())


def test_activations_are_compared_on_the_residual_stream_only(tmp_path: Path) -> None:
    stream, permutation = torch.randn(3, 5, D), Permutation.identity(F, F)
    path = write_gemma_scope(tmp_path)
    known = load_sae(path, site="resid_post")
    evaluate_pair(known, known, permutation, stream, stream)
    for other, message in (
        (load_sae(path), "do not say what the SAE reads"),
        (load_sae(path, site="mlp_out"), "reads mlp_out"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate_pair(known, other, permutation, stream, stream)


@pytest.mark.parametrize("folder", ["layer_{block}", "layer_{", "layer_{0}"])
def test_folder_patterns(tmp_path: Path, folder: str) -> None:
    with pytest.raises(UserError, match=r"only \{layer\} and \{next\}"):
        SaeSource(config("saelens", tmp_path, folder=folder)).files(3)


def test_missing_folder_lists_what_there_is(tmp_path: Path) -> None:
    write_sparsify(tmp_path)
    with pytest.raises(UserError, match=r"no SAE for layer 4.*holds layers\.3"):
        SaeSource(config("sparsify", tmp_path, folder="layers.{layer}")).load(4)
