"""The same files and state dicts give the same features and reconstructions in SAELens and here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.loading import pretrained_sae_loaders as theirs
from torch import Tensor

from sae_match import Convention, SparseAutoencoder, UserError, fold, load_sae
from sae_match.saes.formats.reading import safetensors_shapes
from tests.builders import random_sae
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
)


def in_sae_lens(sae: SparseAutoencoder) -> JumpReLUSAE:
    """The same parameters in SAELens' class; Gemma Scope does not subtract b_dec from the input."""
    theirs = JumpReLUSAE(JumpReLUSAEConfig(d_in=sae.d_model, d_sae=sae.width, apply_b_dec_to_input=False))
    theirs.load_state_dict(sae.parameters())
    return theirs.eval()


@torch.no_grad()
def test_same_activations_and_reconstructions() -> None:
    sae, x = random_sae(width=64, d=16), torch.randn(500, 16)
    for ours in (sae, fold(sae)):
        theirs = in_sae_lens(ours)
        torch.testing.assert_close(ours.encode(x), theirs.encode(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
        assert float((ours.encode(x) > 0).float().mean()) > 0.05  # the comparison is not of zeros


SIZES: dict[str, Any] = {"d_in": D, "d_sae": F, "dtype": "float32"}


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SAELens' loaders ask the hub for files; they get those under tmp_path."""

    def local(repo_id: str, filename: str, subfolder: str = "", **_: object) -> str:
        return str(tmp_path / subfolder / filename)

    def shapes(_: str, filename: str) -> dict[str, list[int]]:
        return {name: list(shape) for name, shape in safetensors_shapes(tmp_path / filename).items()}

    monkeypatch.setattr(theirs, "hf_hub_download", local)
    monkeypatch.setattr(theirs, "get_safetensors_tensor_shapes", shapes)
    return tmp_path


def assembled(cfg: dict[str, Any], state: dict[str, Tensor]) -> SAE[Any]:
    """What `SAE.from_pretrained` makes of a loader's config and state dict."""
    cfg = theirs.handle_config_defaulting(cfg)
    config = SAE.get_sae_config_class_for_architecture(cfg["architecture"]).from_dict(cfg)
    sae = SAE.get_sae_class_for_architecture(config.architecture())(config)
    sae.process_state_dict_for_loading(state)
    sae.load_state_dict({name: t.contiguous() for name, t in state.items()})
    return sae.eval()


def inputs(tokens: int = 400) -> Tensor:
    return torch.randn(tokens, D, generator=torch.Generator().manual_seed(9))


@torch.no_grad()
def assert_same(ours: SparseAutoencoder, other: SAE[Any]) -> None:
    x = inputs()
    f = ours.encode(x)
    torch.testing.assert_close(f, other.encode(x), rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(ours(x), other(x), rtol=1e-5, atol=2e-5)
    share = float((f > 0).float().mean())
    assert 0.02 < share < 0.9  # the comparison is neither of zeros nor of a linear map


def test_gemma_scope(hub: Path) -> None:
    path = write_gemma_scope(hub, 3, 59)
    cfg, state, _ = theirs.gemma_2_sae_huggingface_loader(
        "google/gemma-scope-2b-pt-res", "layer_3/width_16k/average_l0_59", cfg_overrides=SIZES
    )
    assert_same(load_sae(path), assembled(cfg, state))


@pytest.mark.parametrize("config", [True, False])
def test_gemma_scope_2(hub: Path, config: bool) -> None:
    path = write_gemma_scope_2(hub, 3, "resid_post", config=config)
    if not config:
        write_gemma_scope_2(hub, 3, "resid_post")  # SAELens tells a missing config by the hub's answer
    cfg, state, _ = theirs.gemma_3_sae_huggingface_loader(
        "google/gemma-scope-2-270m-pt", "resid_post/layer_3_width_16k_l0_small"
    )
    assert_same(load_sae(path), assembled(cfg, state))


@torch.no_grad()
def test_llama_scope_differs_in_the_decoder_norm_of_the_threshold(hub: Path) -> None:
    """SAELens' threshold lacks the decoder norm; with it divided out, both libraries agree to rounding."""
    ours = load_sae(write_llama_scope(hub, 3))
    cfg, state, _ = theirs.llama_scope_sae_huggingface_loader(
        "fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L3R-8x", cfg_overrides={"dtype": "float32"}
    )
    other = assembled(cfg, state)
    s_in = D**0.5 / 2.5
    other.fold_activation_norm_scaling_factor(s_in)
    norms, x = random_tensors(3)["W_dec"].norm(dim=1), inputs()
    as_they_are = other.encode(x) > 0
    assert torch.equal((other.encode(x) * norms / s_in > 0), as_they_are)  # rescaling alone moves no feature
    fires, differs = ours.encode(x) > 0, (ours.encode(x) > 0) != as_they_are
    assert bool(differs.any())
    # Where the norm is above 1 SAELens' threshold is too high, below 1 too low.
    assert bool((fires & ~as_they_are)[:, norms > 1].any())
    assert not bool((fires & ~as_they_are)[:, norms < 1].any())
    assert not bool((~fires & as_they_are)[:, norms > 1].any())
    other.threshold.data /= norms
    torch.testing.assert_close(ours.encode(x), other.encode(x) * norms / s_in, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(ours(x), other(x), rtol=1e-5, atol=2e-5)


SAELENS: dict[str, dict[str, Any]] = {
    "standard": {"architecture": "standard"},
    "no input bias": {"architecture": "standard", "apply_b_dec_to_input": False},
    "jumprelu": {"architecture": "jumprelu"},
    "topk": {"architecture": "topk", "k": K},
    "topk rescaled": {"architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True},
    "gated": {"architecture": "gated"},
    "gated, no input bias": {"architecture": "gated", "apply_b_dec_to_input": False},
}


@pytest.mark.parametrize("cfg", SAELENS.values(), ids=SAELENS)
def test_saelens(tmp_path: Path, cfg: dict[str, Any]) -> None:
    metadata = {"hook_name": "blocks.3.hook_resid_post", "sae_lens_version": "6.54.12"}
    folder = write_saelens(tmp_path / "sae", {**cfg, "metadata": metadata})
    ours = load_sae(folder, 3)
    assert ours.site == "resid_post"
    assert_same(ours, SAE.load_from_disk(folder))


def test_saelens_writes_what_is_read_here(tmp_path: Path) -> None:
    first = SAE.load_from_disk(write_saelens(tmp_path / "a", {**SAELENS["topk rescaled"], "metadata": {}}))
    first.save_model(tmp_path / "b")
    assert load_sae(tmp_path / "b").content_hash == load_sae(tmp_path / "a").content_hash


FLAT: dict[str, dict[str, Any]] = {
    "oldest": {"hook_point": "blocks.3.hook_resid_post", "activation_fn_str": "relu", "normalize_activations": False},
    "topk": {
        "hook_name": "blocks.3.hook_resid_post",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": K},
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
    },
    "jumprelu": {"hook_name": "blocks.3.hook_resid_post", "architecture": "jumprelu", "sae_lens_version": "3.12.5"},
}


@pytest.mark.parametrize("cfg", FLAT.values(), ids=FLAT)
def test_saelens_before_version_6(tmp_path: Path, cfg: dict[str, Any]) -> None:
    folder = write_saelens(tmp_path / "sae", cfg)
    ours = load_sae(folder, 3)
    assert ours.site == "resid_post"
    assert_same(ours, SAE.load_from_disk(folder))


def test_saelens_log_threshold_of_training_checkpoints(tmp_path: Path) -> None:
    """SAELens reads these into its training class only; the thresholds are the same."""
    cfg = {**SAELENS["jumprelu"], "metadata": {"sae_lens_version": "6.0.0"}}
    log = random_tensors()["threshold"].log()
    folder = write_saelens(tmp_path / "log", cfg, log_threshold=log, threshold=None)
    assert_same(load_sae(folder), SAE.load_from_disk(write_saelens(tmp_path / "plain", cfg)))


DICTIONARIES = (
    "AutoEncoder", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
)  # fmt: skip


@pytest.mark.parametrize("dict_class", DICTIONARIES)
def test_dictionary_learning(hub: Path, dict_class: str) -> None:
    folder = write_dictionary(hub / "resid_post_layer_3" / "trainer_0", dict_class)
    cfg, state, _ = theirs.dictionary_learning_sae_huggingface_loader_1("me/mine", "resid_post_layer_3/trainer_0")
    assert_same(load_sae(folder, 3), assembled(cfg, state))


CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"architecture": "standard"}, {"activation": "relu"}),
    ({"architecture": "jumprelu"}, {"activation": "jumprelu"}),
    ({"architecture": "gated"}, {"activation": "gated"}),
    *(
        (
            {"architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": rescales},
            {"activation": "topk", "k": K, "rescales_by_decoder_norm": rescales},
        )
        for rescales in (True, False)
    ),
]


@torch.no_grad()
@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize(("cfg", "said"), CASES)
def test_sae_lens_in_memory(tmp_path: Path, cfg: dict[str, Any], said: dict[str, Any], subtracts: bool) -> None:
    folder = write_saelens(tmp_path, cfg | {"apply_b_dec_to_input": subtracts, "hook_name": "blocks.1.hook_resid_post"})
    theirs = SAE.load_from_disk(folder).eval()
    convention = Convention(subtracts_b_dec=subtracts, normalization="none", **said)
    ours = SparseAutoencoder.from_state_dict(theirs.state_dict(), convention)
    torch.testing.assert_close(ours.encode(inputs()), theirs.encode(inputs()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours(inputs()), theirs(inputs()), rtol=1e-5, atol=1e-5)
    assert float((ours.encode(inputs()) > 0).float().mean()) > 0.05
    assert ours.content_hash == load_sae(folder).content_hash


def test_linear_layers_of_dictionary_learning() -> None:
    state = {name: t for name, t in dictionary_state("AutoEncoderTopK").items() if name not in ("k", "threshold")}
    convention = Convention(
        activation="topk", k=K, subtracts_b_dec=True, normalization="none", rescales_by_decoder_norm=False
    )
    ours = SparseAutoencoder.from_state_dict(state, convention)
    t = random_tensors()
    pre = torch.relu((inputs() - t["b_dec"]) @ t["W_enc"] + t["b_enc"])  # AutoEncoderTopK.encode
    top = pre.topk(K, sorted=False)
    torch.testing.assert_close(
        ours.encode(inputs()), torch.zeros_like(pre).scatter_(-1, top.indices, top.values), rtol=1e-5, atol=1e-5
    )


def test_one_threshold_for_all_features_and_half_precision() -> None:
    t = random_tensors()
    state = {name: v.to(torch.bfloat16) for name, v in t.items()} | {"threshold": torch.tensor(0.5)}
    convention = Convention(activation="jumprelu", subtracts_b_dec=True, normalization="none")
    ours = SparseAutoencoder.from_state_dict(state, convention)
    assert ours.threshold.tolist() == [0.5] * F
    exact = {name: v.to(torch.bfloat16).float() for name, v in t.items()}
    torch.testing.assert_close(ours.b_enc, exact["b_enc"] - exact["b_dec"] @ exact["W_enc"])


WITHOUT = {name: t for name, t in random_tensors().items() if name != "threshold"}


@pytest.mark.parametrize(
    ("state", "said", "message"),
    [
        (WITHOUT, {"activation": "jumprelu"}, "missing: threshold; unknown: none"),
        (random_tensors(), {"activation": "relu"}, "missing: none; unknown: threshold"),
        (WITHOUT, {"activation": "topk", "rescales_by_decoder_norm": False}, "topk needs a positive k"),
        (WITHOUT, {"activation": "topk", "k": 3}, "rescales_by_decoder_norm=True or False"),
        (WITHOUT, {"activation": "relu", "k": 3}, "others have none"),
        (WITHOUT, {"activation": "swish"}, "must be one of jumprelu, relu, gated, topk"),
        (WITHOUT, {"activation": "relu", "normalization": "unit"}, "must be one of none, .*, or the positive number"),
        (WITHOUT, {"activation": "relu", "normalization": -2.0}, "or the positive number"),
        (WITHOUT | {"b_enc": [0.0]}, {"activation": "relu"}, "b_enc must be a floating-point tensor, got list"),
        (WITHOUT | {"W_dec": torch.zeros(D, F)}, {"activation": "relu"}, r"W_dec has shape \(8, 24\)"),
    ],
)
def test_nothing_is_guessed(state: dict[str, Any], said: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SparseAutoencoder.from_state_dict(
            state, Convention(**{"subtracts_b_dec": False, "normalization": "none"} | said)
        )


@torch.no_grad()
@pytest.mark.parametrize("cfg", SAELENS.values(), ids=SAELENS)
def test_one_factor_for_all_inputs_is_folded(tmp_path: Path, cfg: dict[str, Any]) -> None:
    """As SAELens folds `expected_average_only_in`; without the factor the SAE only matches."""
    theirs = SAE.load_from_disk(write_saelens(tmp_path, {**cfg, "normalize_activations": "expected_average_only_in"}))
    with pytest.raises(UserError, match=r"Convention\.normalization"):
        load_sae(theirs).encode(inputs())
    said = Convention(
        activation={"standard": "relu"}.get(cfg["architecture"], cfg["architecture"]),
        subtracts_b_dec=cfg.get("apply_b_dec_to_input", True),
        normalization=2.5,
        k=cfg.get("k"),
        rescales_by_decoder_norm=cfg.get("rescale_acts_by_decoder_norm", False),
    )
    ours = SparseAutoencoder.from_state_dict({n: t.clone() for n, t in theirs.state_dict().items()}, said)
    theirs.fold_activation_norm_scaling_factor(2.5)
    assert_same(ours, theirs)
    assert_same(load_sae(theirs), theirs)


def test_the_constructor_points_to_it(tmp_path: Path) -> None:
    theirs = SAE.load_from_disk(write_saelens(tmp_path, {"architecture": "standard", "hook_name": "x"}))
    with pytest.raises(UserError, match=r"no threshold.*from_state_dict"):
        SparseAutoencoder(**theirs.state_dict())
