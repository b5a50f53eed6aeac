"""Rules of the `sae` and `folding` groups, and what the SAE files under conf/ say about themselves."""

from __future__ import annotations

import re

import pytest

from sae_match import UserError
from sae_match.files import config_directory
from sae_match.rules import check_config
from sae_match.saes import SaeSource, Site
from sae_match.saes.folding import FoldingScale
from sae_match.saes.formats.gemma_scope import GemmaScope
from tests.config.test_configuration import composed, every

WEIGHTS_ONLY = "evaluation=weights_only"
LOCAL = ("sae.root=/data", "layers.last=1", WEIGHTS_ONLY)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+sae.folder=x"], "unknown configuration key: sae.folder"),
        (["+sae.width=16k"], "unknown configuration key: sae.width"),
        (["sae.l0=canonical"], "sae.l0=canonical: must be a whole number such as 64"),
        (["sae.l0=16/32"], "names 2 L0s, but layers.first=11, layers.last=18 are 8 layers"),
        (["sae.l0=16/x", "layers.first=17"], "one per layer, joined by /"),
        (["sae.l0=16", "sae.l0_filename=null"], "sae.l0=16: needs sae.l0_filename"),
        (["sae.l0_filename=x"], "must contain {l0}"),
        (
            ["sae.last_layer=17", "layers.last=18"],
            "layers.first=11, layers.last=18: the SAEs smollm2_135m cover layers 0..17",
        ),
        (["sae=gemma_scope_2b", "sae.l0=71/70", WEIGHTS_ONLY], "names 2 L0s, but"),
        (["sae=gemma_scope_2b", "sae.l0=71/x", WEIGHTS_ONLY], "must be whole numbers, joined by /"),
        (["sae=sparsify", "+sae.norm_scaling_factors={3: 2.0}", *LOCAL], "unknown configuration key: sae.norm_scaling"),
        (["sae=saelens", *LOCAL], "configuration values not set: sae.folder"),
        (["sae=saelens", "sae.folder=x", "+sae.norm_scaling_factors={3: -1.0}", *LOCAL], "factors.3=-1.0: must be"),
        (["sae=gemma_scope_2b", "sae.l0_near=70", WEIGHTS_ONLY], "goes with sae.l0=similar only"),
        (["sae=gemma_scope_2b", "sae.l0=similar", "sae.l0_near=0", WEIGHTS_ONLY], "sae.l0_near=0: must be"),
        (["sae=gemma_scope_2_1b", "sae.l0=70", WEIGHTS_ONLY], "Gemma Scope 2 has small, medium, big"),
        (["sae=gemma_scope_2_1b", "sae.l0=medium", WEIGHTS_ONLY], "only for four layers"),
        (["sae=gemma_scope_2_1b", "sae.affine=true", WEIGHTS_ONLY], "only transcoders have an affine"),
        (["sae=gemma_scope_2_1b", "sae.site=resid_mid", WEIGHTS_ONLY], "sae.site=resid_mid: Gemma Scope 2 has"),
        (["folding.scale=mean_activation", WEIGHTS_ONLY], r"folding\.scale=mean_activation: is measured on text"),
        (["folding.k=3"], "goes with folding.scale=estimated only"),
        (["folding.scale=estimated", "folding.k=0"], "folding.k=0: must be greater than or equal to 1"),
        (["sae.site=mlp_out"], r"sae\.site=mlp_out: activations are compared on resid_post only"),
        (["sae=gemma_scope_2b_mlp", "model=gemma_2_2b"], r"sae\.site=mlp_out"),
        (["sae=gemma_scope_9b", "model=gemma_2_2b", "layers.last=25"], r"sae\.d_model=3584, model\.d_model=2304"),
        (["sae.n_layers=31"], r"sae\.n_layers=31, model\.n_layers=30"),
    ],
)
def test_rules(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_config(composed(*overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        ["sae=gemma_scope_2b_mlp", WEIGHTS_ONLY],
        ["sae=gemma_scope_2b_att", WEIGHTS_ONLY],
        ["sae=gemma_scope_2b", "sae.l0=similar", "sae.l0_near=75", WEIGHTS_ONLY],
        ["sae=gemma_scope_2_1b", "sae.site=transcoder", "sae.affine=true", WEIGHTS_ONLY],
        ["sae=gemma_scope_2_1b", "sae.every_layer=false", "sae.l0=medium", "layers.first=7", WEIGHTS_ONLY],
        ["sae=saelens", "sae.folder='blocks.{next}.hook_resid_pre'", "+sae.norm_scaling_factors={3: 2.5}", *LOCAL],
        ["folding.scale=estimated", "folding.k=32"],
    ],
)
def test_what_may_be_combined(overrides: list[str]) -> None:
    check_config(composed(*overrides))


def test_default_scale_is_auto() -> None:
    cfg = composed()
    assert (cfg.folding.scale, cfg.folding.k) == (FoldingScale.auto, None)


RELEASES = [
    p.stem for p in sorted((config_directory() / "sae").glob("*.yaml")) if re.search(r"scope.*\d+[bmx]", p.stem)
]


@pytest.mark.parametrize("name", RELEASES)
def test_releases_name_their_files_for_every_layer(name: str) -> None:
    """No network: the file of every layer follows from the configuration."""
    sae = every("sae")[name]
    assert sae.site is not None
    assert sae.d_model is not None
    assert sae.n_layers is not None
    layers = (10, 22, 34) if name == "gemma_scope_27b" else range(sae.first_layer, sae.last_layer + 1)
    files = [SaeSource(sae).files(layer) for layer in layers]
    assert len({names[-1] for names in files}) == len(files)
    assert sae.last_layer < sae.n_layers
    if isinstance(sae, GemmaScope):
        suffix = {Site.resid_post: "-res", Site.mlp_out: "-mlp", Site.attn_out: "-att"}[sae.site]
        assert (sae.repo_id or "").endswith(suffix)


def test_names_of_the_real_files() -> None:
    expected = {
        "gemma_scope_2b": ["layer_19/width_16k/average_l0_73/params.npz"],
        "gemma_scope_2_270m": ["resid_post_all/layer_19_width_16k_l0_small/params.safetensors"],
        "llama_scope_8x": [
            "Llama3_1-8B-Base-L19R-8x/hyperparams.json",
            "Llama3_1-8B-Base-L19R-8x/checkpoints/final.safetensors",
        ],
        "sparsify": ["layers.19/cfg.json", "layers.19/sae.safetensors"],
    }
    saes = every("sae")
    for name, files in expected.items():
        assert list(SaeSource(saes[name]).files(19)) == files
